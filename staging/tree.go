package staging

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

// tree builds a copy of one directory of a view under a place's temporary name.
//
// A symbolic link to something in the directory stays a link, relative. What a link leads to elsewhere in
// the view is copied to where the first such link is; later ones become links to that copy, so a few links
// cannot multiply what is copied. A link that leads nowhere, out of the view, or in a circle, as to what the
// directory lies in, is left out.
type tree struct {
	ctx   context.Context // of one call
	c     *collector
	place *place
	from  string // container path of the output
	// copies are what was copied, the directory itself and what links led to: resolved container paths, and
	// where below the output their copies are. What lies in one of them has its copy in that copy.
	copies map[string]string
	within []string // those of copies that are being copied now, the outermost first
	files  []treeFile
	left   int // how many things were left out
}

// maxLeft is how many things that are left out are told one by one: a task can make millions.
const maxLeft = 20

type treeFile struct {
	rel  string // below the output
	size int64  // bytes
}

// modes that are kept: directories may be sticky.
const dirMode = 0o1777

func (t *tree) build(n *node) error {
	dir := int(t.place.dir.Fd())
	if err := unix.Mkdirat(dir, t.place.tmp, 0o700); err != nil {
		return err
	}
	t.place.made = true
	fd, err := openDir(dir, t.place.tmp)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	t.copies, t.within = map[string]string{n.path: ""}, []string{n.path}
	if err := t.contents(n, fd, "", 0); err != nil {
		return err
	}
	if t.left > maxLeft {
		t.c.warn("output %s: %d more pipes, sockets, devices and symbolic links that lead nowhere, outside or in a circle are left out", t.from, t.left-maxLeft)
	}
	stat := n.stat
	if n.root || n.fd < 0 {
		// Berth made it, for all users of the container; the task never chose its mode.
		stat.Mode = 0o777 &^ uint32(umask())
	}
	return t.c.finish(dir, fd, t.place.tmp, &stat, dirMode)
}

func openDir(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// contents copies what the directory n holds into dst, which is at rel below the output.
func (t *tree) contents(n *node, dst int, rel string, depth int) error {
	if depth > maxDepth {
		return t.fault(rel, fmt.Errorf("%w: more than %d directories deep", berth.ErrInvalid, maxDepth))
	}
	names, err := t.c.view.names(n)
	if err != nil {
		return readFault(t.at(rel), err)
	}
	for _, name := range names {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		if err := t.entry(n, name, dst, path.Join(rel, name), depth); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) entry(dir *node, name string, dst int, rel string, depth int) error {
	n, err := t.c.view.child(dir, name)
	if errors.Is(err, errNotThere) {
		return nil // it was there when the directory was read
	}
	if err != nil {
		return readFault(t.at(rel), err)
	}
	defer n.close()
	if n.isLink() {
		return t.link(n, dst, name, rel, depth)
	}
	return t.copy(n, dst, name, rel, depth)
}

// copy copies a file or directory; other things are left out.
func (t *tree) copy(n *node, dst int, name, rel string, depth int) error {
	switch {
	case n.isDir():
		return t.sub(n, dst, name, rel, depth)
	case !n.isFile():
		t.leave("%s is %s, which is left out", t.at(rel), n.kind())
		return nil
	}
	size, err := t.c.write(t.ctx, dst, name, n, func() {})
	if err != nil {
		return err
	}
	t.files = append(t.files, treeFile{rel, size})
	return nil
}

// leave tells what is left out.
func (t *tree) leave(format string, args ...any) {
	if t.left++; t.left <= maxLeft {
		t.c.warn("output %s: "+format, append([]any{t.from}, args...)...)
	}
}

func (t *tree) leaveLink(rel, text string, err error) {
	t.leave("%s is a symbolic link to %s, which %s and is left out", t.at(rel), text, leads(err))
}

func (t *tree) sub(n *node, dst int, name, rel string, depth int) error {
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return err
	}
	fd, err := openDir(dst, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := t.contents(n, fd, rel, depth+1); err != nil {
		return err
	}
	stat := n.stat
	if n.fd < 0 {
		stat.Mode = 0o755
	}
	return t.c.finish(dst, fd, name, &stat, dirMode)
}

// link keeps a link, or copies what it leads to.
func (t *tree) link(n *node, dst int, name, rel string, depth int) error {
	text, err := readLink(n)
	if err != nil {
		return readFault(t.at(rel), err)
	}
	target, err := t.c.view.resolve(n.path, true)
	if errors.Is(err, errNotThere) || errors.Is(err, errOutside) || errors.Is(err, errCycle) {
		// As in every virtual environment of Python: of an image's own file. The rest is worth having.
		t.leaveLink(rel, text, err)
		return nil
	}
	if err != nil {
		return readFault(t.at(rel), err)
	}
	defer target.close()
	if !target.isDir() && !target.isFile() {
		return t.copy(target, dst, name, rel, depth)
	}
	if to, ok := t.copyOf(target.path); ok {
		return t.symlink(n, dst, rel, text, to)
	}
	for _, c := range t.within {
		if contains(target.path, c) {
			t.leaveLink(rel, text, errCycle)
			return nil
		}
	}
	t.copies[target.path] = rel
	t.within = append(t.within, target.path)
	defer func() { t.within = t.within[:len(t.within)-1] }()
	return t.copy(target, dst, name, rel, depth)
}

// symlink makes a relative link at rel to the path to, both below the output. The text of the link that was
// there is kept where it says the same.
func (t *tree) symlink(n *node, dst int, rel, text, to string) error {
	dir := path.Dir(rel)
	if !t.keeps(n, text, dir, to) {
		text = relative(dir, to)
	}
	if err := unix.Symlinkat(text, dst, path.Base(rel)); err != nil {
		return err
	}
	return t.c.own(dst, dst, path.Base(rel))
}

// keeps reports whether a link's text means in the copy what it meant in the container. It does if it leads
// up first, no further than to the output, and then down: through links it comes to where the copy has them
// too, if the link itself is not in what another link led to.
func (t *tree) keeps(n *node, text, dir, to string) bool {
	if text == "" || strings.HasPrefix(text, "/") {
		return false
	}
	ups, down := 0, strings.TrimPrefix(text, "./")
	for strings.HasPrefix(down, "../") {
		ups, down = ups+1, down[len("../"):]
	}
	if down == ".." || strings.Contains("/"+down+"/", "/../") || ups > depthOf(dir) {
		return false
	}
	return path.Join(dir, text) == path.Clean(to) || path.Dir(n.path) == path.Join(t.within[0], dir)
}

// copyOf says where below the output the copy of a container path is.
func (t *tree) copyOf(p string) (rel string, ok bool) {
	for dir := p; ; dir = path.Dir(dir) {
		if rel, ok = t.copies[dir]; ok {
			return path.Join(rel, strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")), true
		}
		if dir == "/" {
			return "", false
		}
	}
}

// at is the container path of what is at rel below the output.
func (t *tree) at(rel string) string { return path.Join(t.from, rel) }

func (t *tree) fault(rel string, err error) error {
	return &fault{text: fmt.Sprintf("output %s: %s", t.at(rel), err), kind: berth.ErrInvalid, cause: err}
}

// contains reports whether p is dir or lies in it.
func contains(dir, p string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

func depthOf(rel string) int {
	if rel == "." || rel == "" {
		return 0
	}
	return strings.Count(rel, "/") + 1
}

// relative is the way from a directory to a path, both below the output.
func relative(dir, to string) string {
	from, dest := split(dir), split(to)
	i := 0
	for i < len(from) && i < len(dest) && from[i] == dest[i] {
		i++
	}
	up := strings.Repeat("../", len(from)-i)
	if down := strings.Join(dest[i:], "/"); up+down != "" {
		return strings.TrimSuffix(up+down, "/")
	}
	return "."
}

func split(rel string) []string {
	if rel = path.Clean(rel); rel == "." {
		return nil
	}
	return strings.Split(rel, "/")
}

// umask reads the process's mask without changing it.
func umask() int {
	data, err := os.ReadFile("/proc/self/status")
	if err == nil {
		if _, rest, ok := strings.Cut(string(data), "\nUmask:"); ok {
			var mask int
			if _, err := fmt.Sscanf(rest, "%o", &mask); err == nil {
				return mask
			}
		}
	}
	return 0o022
}
