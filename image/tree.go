package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

const (
	treeFDs   = 64 // descriptors kept open
	linkDepth = 40 // symbolic links followed in one path, as the kernel has it
	aliasMost = 4096

	// stepsMost bounds the directories that are entered on the way to one, and with stepsEach those of a whole
	// archive: each path that is opened adds as many. Links that lead up and down again cost thousands a path.
	stepsMost = 1 << 18
	stepsEach = 64
)

// node is an open directory (O_PATH) and its path from the root, free of symbolic links.
type node struct {
	fd   int
	path string
}

// tree reaches the directories beneath a root by descriptors, never through a symbolic link that the kernel
// follows: links are read and resolved here, against the root.
type tree struct {
	root    int
	name    string            // of the root, for messages
	fds     map[string]int    // by path without symbolic links
	aliases map[string]string // paths through symbolic links, and where they lead
	steps   int               // that may still be taken
}

func newTree(root *os.File) *tree {
	return &tree{root: int(root.Fd()), name: root.Name(), fds: map[string]int{}, aliases: map[string]string{}, steps: stepsMost}
}

func (t *tree) close() { t.flush(-1) }

// flush closes every descriptor but keep.
func (t *tree) flush(keep int) {
	for p, fd := range t.fds {
		if fd != keep {
			unix.Close(fd)
			delete(t.fds, p)
		}
	}
	clear(t.aliases)
}

// open opens a directory, given from the root. For each part of the path that is not there missing is called
// to make it; nil makes that an error. The descriptor is the tree's and is good until the next call.
func (t *tree) open(ctx context.Context, dir string, missing func(at node, base string) error) (node, error) {
	t.steps = min(t.steps+stepsEach, stepsMost)
	if dir == "" {
		return node{t.root, ""}, nil
	}
	if fd, ok := t.fds[dir]; ok {
		return node{fd, dir}, nil
	}
	if real, ok := t.aliases[dir]; ok {
		return t.open(ctx, real, missing)
	}
	at, rest := t.nearest(dir)
	at, err := t.walk(ctx, at, rest, missing)
	if err == nil && at.path != dir {
		if len(t.aliases) >= aliasMost {
			clear(t.aliases)
		}
		t.aliases[dir] = at.path
	}
	return at, err
}

// nearest finds the deepest directory above dir that is open, and what remains of the path.
func (t *tree) nearest(dir string) (node, string) {
	for i := strings.LastIndexByte(dir, '/'); i > 0; i = strings.LastIndexByte(dir[:i], '/') {
		if fd, ok := t.fds[dir[:i]]; ok {
			return node{fd, dir[:i]}, dir[i+1:]
		}
	}
	return node{t.root, ""}, dir
}

// walk goes from at along rest.
func (t *tree) walk(ctx context.Context, at node, rest string, missing func(at node, base string) error) (node, error) {
	for links := 0; rest != ""; {
		var base string
		base, rest, _ = strings.Cut(rest, "/")
		switch base {
		case "", ".":
			continue
		case "..":
			up, err := t.up(ctx, at)
			if err != nil {
				return node{}, err
			}
			at = up
			continue
		}
		if err := t.spend(ctx); err != nil {
			return node{}, err
		}
		next, link, err := t.step(at, base)
		if errors.Is(err, unix.ENOENT) && missing != nil {
			if err = missing(at, base); err == nil {
				next, link, err = t.step(at, base)
			}
		}
		if err != nil {
			return node{}, err
		}
		if link == "" {
			at = next
			continue
		}
		if links++; links > linkDepth || len(rest) > 2*tarPathMax {
			return node{}, errArchive("too many symbolic links on its way")
		}
		if strings.HasPrefix(link, "/") {
			at = node{t.root, ""}
		}
		rest = link + "/" + rest
	}
	return at, nil
}

// up is the directory above at; the root is above itself.
func (t *tree) up(ctx context.Context, at node) (node, error) {
	dir := strings.TrimPrefix(path.Dir("/"+at.path), "/")
	if fd, ok := t.fds[dir]; ok {
		return node{fd, dir}, nil
	}
	near, rest := t.nearest(dir)
	return t.walk(ctx, near, rest, nil)
}

// spend counts a step. ErrInvalid if there were too many.
func (t *tree) spend(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if t.steps--; t.steps < 0 {
		return errArchive("the links on its way lead through too many directories: more than %d", stepsMost)
	}
	return nil
}

// step opens base in at, or returns what the symbolic link of that name says.
func (t *tree) step(at node, base string) (next node, link string, err error) {
	real := base
	if at.path != "" {
		real = at.path + "/" + base
	}
	if fd, ok := t.fds[real]; ok {
		return node{fd, real}, "", nil
	}
	fd, err := unix.Openat(at.fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		if len(t.fds) >= treeFDs {
			t.flush(at.fd)
		}
		t.fds[real] = fd
		return node{fd, real}, "", nil
	}
	if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		return node{}, "", sysErr("open "+base, err)
	}
	buf := make([]byte, tarPathMax+1)
	n, err := unix.Readlinkat(at.fd, base, buf)
	if err != nil {
		return node{}, "", t.notDir(at, base)
	}
	return node{}, string(buf[:n]), nil
}

// notDir says why base cannot be entered: a whiteout is as good as nothing, all else is no directory.
func (t *tree) notDir(at node, base string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && isWhiteout(&st) {
		return unix.ENOENT
	}
	return fmt.Errorf("%w: %q is no directory", berth.ErrInvalid, path.Join(at.path, base))
}

// removeTree removes a directory and all in it. real is free of symbolic links.
func (t *tree) removeTree(real string) error {
	clear(t.aliases)
	for p, fd := range t.fds {
		if p == real || strings.HasPrefix(p, real+"/") {
			unix.Close(fd)
			delete(t.fds, p)
		}
	}
	root, err := os.OpenRoot(t.name)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(real)
}

// isWhiteout reports whether overlay takes this for a whiteout.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
