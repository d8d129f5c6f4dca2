package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Lookup reads a regular file of an image as the merged root would show it: whiteouts and opaque directories
// are heeded, symbolic links are resolved within the root. The bytes are the caller's to read only.
// ErrNotFound if there is no such image or file; ErrInvalid if it is no regular file; ErrExhausted if it has
// more than 1 MiB.
func (s *Store) Lookup(imageID, name string) ([]byte, error) {
	l, err := s.load(imageID)
	if err != nil {
		return nil, err
	}
	name = path.Clean("/" + name)
	s.mu.Lock()
	b, ok := l.files[name]
	s.mu.Unlock()
	if !ok {
		if b, err = s.view(l.roots).read(name); errors.Is(err, berth.ErrNotFound) {
			b = nil // that, too, is worth remembering
		} else if err != nil {
			return nil, fmt.Errorf("image %s: %w", imageID, err)
		}
		s.mu.Lock()
		if len(b) <= cachedMax && len(l.files) < cachedMost {
			l.files[name] = b
		}
		s.mu.Unlock()
	}
	if b == nil {
		return nil, fmt.Errorf("image %s: %s: %w", imageID, name, berth.ErrNotFound)
	}
	return b, nil
}

// view is layers seen as overlay would merge them, topmost first.
type view struct {
	roots  []string
	opaque string // the extended attribute that marks an opaque directory
}

func (s *Store) view(roots []string) view {
	if s.opts.Rootless {
		return view{roots, "user.overlay.opaque"}
	}
	return view{roots, "trusted.overlay.opaque"}
}

// merged is something in a view: a directory in one or more layers, or anything else in one.
type merged struct {
	name  string   // path in the view, free of symbolic links, "" for the root
	paths []string // in the layers, topmost first
	stat  unix.Stat_t
}

func (m *merged) isDir() bool { return m.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

func (v view) root() (merged, error) {
	m := merged{paths: v.roots}
	if len(v.roots) == 0 {
		m.stat.Mode = unix.S_IFDIR | 0o755
		return m, nil
	}
	return m, unix.Lstat(v.roots[0], &m.stat)
}

// child finds a name in a directory: unix.ENOENT if the view does not show it.
func (v view) child(dir *merged, base string) (merged, error) {
	m := merged{name: path.Join(dir.name, base)}
	for _, p := range dir.paths {
		p = filepath.Join(p, base)
		var st unix.Stat_t
		err := unix.Lstat(p, &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return merged{}, err
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if isWhiteout(&st) || len(m.paths) > 0 && !isDir {
			break
		}
		if len(m.paths) == 0 {
			m.stat = st
		}
		m.paths = append(m.paths, p)
		if !isDir || v.isOpaque(p) {
			break
		}
	}
	if len(m.paths) == 0 {
		return merged{}, unix.ENOENT
	}
	return m, nil
}

func (v view) isOpaque(p string) bool {
	var b [1]byte
	n, err := unix.Lgetxattr(p, v.opaque, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// findSteps bounds the names that are looked up on the way of one path: links that lead up and down again make
// thousands of each.
const findSteps = 4096

// find resolves a path from the root. The last part is resolved too where follow says so.
func (v view) find(name string, follow bool) (merged, error) {
	root, err := v.root()
	if err != nil {
		return merged{}, err
	}
	at, rest := []merged{root}, name // at is the way from the root to where the search stands
	for links, steps := 0, 0; rest != ""; {
		var base string
		base, rest, _ = strings.Cut(rest, "/")
		switch base {
		case "", ".":
			continue
		case "..":
			at = at[:max(len(at)-1, 1)]
			continue
		}
		dir := &at[len(at)-1]
		if !dir.isDir() {
			return merged{}, unix.ENOTDIR
		}
		if steps++; steps > findSteps {
			return merged{}, unix.ELOOP
		}
		m, err := v.child(dir, base)
		if err != nil {
			return merged{}, err
		}
		if m.stat.Mode&unix.S_IFMT != unix.S_IFLNK || rest == "" && !follow {
			at = append(at, m)
			continue
		}
		if links++; links > linkDepth {
			return merged{}, unix.ELOOP
		}
		target, err := os.Readlink(m.paths[0])
		if err != nil {
			return merged{}, err
		}
		if strings.HasPrefix(target, "/") {
			at = at[:1]
		}
		rest = target + "/" + rest
	}
	return at[len(at)-1], nil
}

// read reads a regular file.
func (v view) read(name string) ([]byte, error) {
	m, err := v.find(name, true)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%s: %w", name, berth.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", name, kindOf(err), err)
	case m.stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s: %w: it is no regular file", name, berth.ErrInvalid)
	}
	// No part of the path in the layer is a symbolic link, and nobody writes to layers.
	f, err := os.OpenFile(m.paths[0], os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, kindOf(err), err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, lookupMax+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, kindOf(err), err)
	}
	if len(b) > lookupMax {
		return nil, fmt.Errorf("%s: %w: it has more than %d bytes", name, berth.ErrExhausted, lookupMax)
	}
	return b, nil
}
