package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// trees are what of this host a task could write to. A link there leads where a task chose, this one or one before, whoever
// owns it: none is followed, and a place there is opened from the first such directory on the way to it, name by name.
//
// They are known by their paths, by where these lie in their file systems, and by their inodes: the same directory may be mounted
// elsewhere too, and what is mounted below one is the task's to write as well. nil are none.
type trees struct {
	paths  []string // real
	parts  []part
	roots  map[inode]string   // the tree that a directory is
	mounts map[int]mountPoint // by ID
}

// part is a directory of a file system.
type part struct{ device, path, tree string }

// inode is a file or directory, whatever its name.
type inode struct{ device, number uint64 }

// mountPoint is a line of /proc/self/mountinfo. Of NFS, device and root are the server and the path there: each of its mounts
// claims to begin at the root, and all of one server may have one device.
type mountPoint struct{ device, root, point string }

// entry is the way to a place from the first directory on it that a task could write to.
type entry struct {
	dir   int    // a descriptor of that directory, for looking alone
	path  string // its real path
	tree  string // which it lies in
	names []string
}

func newTrees(writable []string) (*trees, error) {
	if len(writable) == 0 {
		return nil, nil //nolint:nilnil // nil are none
	}
	t := &trees{paths: writable, roots: map[inode]string{}}
	if err := t.readMounts(); err != nil {
		return nil, err
	}
	for _, tree := range writable {
		n, err := openNode(unix.AT_FDCWD, tree, tree)
		if err == nil {
			t.roots[n.inode()] = tree
			m, known := t.mountOf(n.fd)
			n.close()
			if at, ok := m.inside(tree); known && ok {
				t.parts = append(t.parts, part{m.device, at, tree})
			}
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return nil, err
		}
		for _, m := range t.mounts {
			if contains(tree, m.point) {
				t.parts = append(t.parts, part{m.device, m.root, tree})
			}
		}
	}
	return t, nil
}

// readMounts reads what is mounted where.
func (t *trees) readMounts() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	t.mounts = map[int]mountPoint{}
	for line := range strings.Lines(string(data)) {
		if id, m, ok := parseMount(line); ok {
			t.mounts[id] = m
		}
	}
	return nil
}

// parseMount reads a line of /proc/self/mountinfo.
func parseMount(line string) (id int, m mountPoint, ok bool) {
	own, common, _ := strings.Cut(line, " - ")
	f, source := strings.Fields(own), strings.Fields(common) // ID, parent, device, root, point, …; type, source, …
	if len(f) < 5 {
		return 0, mountPoint{}, false
	}
	id, err := strconv.Atoi(f[0])
	m = mountPoint{f[2], unescape(f[3]), unescape(f[4])}
	if len(source) > 1 && (source[0] == "nfs" || source[0] == "nfs4") {
		if server, at, found := strings.Cut(unescape(source[1]), ":/"); found {
			m.device, m.root = server, filepath.Clean("/"+at)
		}
	}
	return id, m, err == nil
}

// unescape reads a path as the kernel writes it there: octal numbers for what would end it.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}

// inside is where in the mounted file system a path lies.
func (m mountPoint) inside(p string) (string, bool) {
	if m.point == "" || !contains(m.point, p) {
		return "", false
	}
	return filepath.Join(m.root, strings.TrimPrefix(p, m.point)), true
}

// mountOf is the mount that a descriptor is in. Of one that berth does not see, as around a changed root, nothing is known.
func (t *trees) mountOf(fd int) (mountPoint, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return mountPoint{}, false
	}
	_, rest, _ := strings.Cut(string(data), "mnt_id:")
	line, _, _ := strings.Cut(rest, "\n")
	id, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return mountPoint{}, false
	}
	m, ok := t.mounts[id]
	if !ok && t.readMounts() == nil { // mounted meanwhile, by being walked to
		m, ok = t.mounts[id]
	}
	return m, ok
}

// inode is what a node is.
func (n *node) inode() inode {
	return inode{uint64(n.stat.Dev), n.stat.Ino} //nolint:unconvert // its type differs between architectures
}

// holds is the tree that a directory on the way to a place lies in; "" for none.
func (t *trees) holds(n *node) string {
	for _, tree := range t.paths {
		if contains(tree, n.path) {
			return tree
		}
	}
	if tree, ok := t.roots[n.inode()]; ok {
		return tree
	}
	m, known := t.mountOf(n.fd)
	at, ok := m.inside(n.path)
	if !known || !ok {
		return ""
	}
	for _, part := range t.parts {
		if part.device == m.device && contains(part.path, at) {
			return part.tree
		}
	}
	return ""
}

// hop is a directory on the way to a place.
type hop struct {
	fd         int
	path, tree string
}

// enter walks to a place, up to the first directory that a task could write to; nil if there is none, and also if the way
// ends before: no task could put anything there. Links before it are followed, the last name's only if follow, and not to
// what a process has open.
func (t *trees) enter(name string, follow bool) (*entry, error) {
	if t == nil {
		return nil, nil //nolint:nilnil // there is none
	}
	top, err := openNode(unix.AT_FDCWD, "/", "/")
	if err != nil {
		return nil, err
	}
	way := []hop{{top.fd, "/", t.holds(top)}}
	defer func() {
		for _, h := range way {
			unix.Close(h.fd)
		}
	}()
	cut := func(to int) {
		for _, h := range way[to:] {
			unix.Close(h.fd)
		}
		way = way[:to]
	}
	todo := named(name)
	for links := 0; len(todo) > 0; {
		at, next := way[len(way)-1], todo[0]
		switch {
		case at.tree != "":
			if slices.Contains(todo, "..") {
				return nil, conflict(fmt.Sprintf("the way to %s has a .. in %s, which the task can write to; name the place itself", name, at.tree))
			}
			fd, err := unix.FcntlInt(uintptr(at.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			return &entry{fd, at.path, at.tree, todo}, nil
		case next == "..":
			cut(max(1, len(way)-1))
			todo = todo[1:]
			continue
		}
		todo = todo[1:]
		n, err := openNode(at.fd, next, filepath.Join(at.path, next))
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENAMETOOLONG):
			return nil, nil //nolint:nilnil // whoever opens it says so, or makes it
		case err != nil:
			return nil, err
		case n.isDir():
			way = append(way, hop{n.fd, n.path, t.holds(n)})
			continue
		case !n.isLink() || len(todo) == 0 && !follow:
			n.close()
			return nil, nil //nolint:nilnil // likewise
		}
		magic, err := n.isMagic()
		var text string
		if err == nil && !magic {
			text, err = readLink(n)
		} else if magic && len(todo) > 0 {
			err = conflict(n.path + " leads to what a process has open; name the place itself")
		}
		n.close()
		if magic || err != nil {
			return nil, err // what a process has open is come to by no way
		}
		if links++; links > maxLinks {
			return nil, conflict("its symbolic links lead in a circle")
		}
		if strings.HasPrefix(text, "/") {
			cut(1)
		}
		todo = append(named(text), todo...)
	}
	return nil, nil //nolint:nilnil // likewise
}

// isMagic reports whether a link is one of /proc to what a process has open: it leads elsewhere than it says.
func (n *node) isMagic() (bool, error) {
	var where unix.Statfs_t
	if err := unix.Fstatfs(n.fd, &where); err != nil {
		return false, &fs.PathError{Op: "stat", Path: n.path, Err: err}
	}
	return int64(where.Type) == unix.PROC_SUPER_MAGIC && filepath.Dir(n.path) != "/proc", nil
}

// named are the names of a path.
func named(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(s string) bool { return s == "" || s == "." })
}

func (e *entry) close() { unix.Close(e.dir) }

// place is the path of what is at the end.
func (e *entry) place() string { return filepath.Join(append([]string{e.path}, e.names...)...) }

// open opens the directory that the place lies in, for looking and for what is done by name there: neither it nor those on
// the way need be readable. One that is not there is made by mkdir, if that is not nil.
func (e *entry) open(mkdir func(parent *os.File, name string) error) (*os.File, error) {
	at := e.path
	dir, err := e.sub(e.dir, ".", at)
	for _, name := range e.names[:len(e.names)-1] {
		if err != nil {
			return nil, err
		}
		at = filepath.Join(at, name)
		sub, err := e.sub(int(dir.Fd()), name, at)
		if errors.Is(err, unix.ENOENT) && mkdir != nil {
			if err = mkdir(dir, name); err == nil {
				sub, err = e.sub(int(dir.Fd()), name, at)
			}
		}
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = sub
	}
	return dir, err
}

func (e *entry) sub(dir int, name, at string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		return os.NewFile(uintptr(fd), at), nil
	}
	n, bad := openNode(dir, name, at)
	if bad == nil {
		defer n.close()
		if n.isLink() {
			return nil, notFollowed(at, e.tree)
		}
	}
	return nil, &fs.PathError{Op: "open", Path: at, Err: err}
}

// notFollowed says that a link is not.
func notFollowed(link, tree string) error {
	return conflict(fmt.Sprintf("%s is a symbolic link in %s, which the task can write to, and not followed; name what it is to lead to", link, tree))
}

// look is what is at the place, opened without effect; nil if there is nothing. A link there or on the way is an error.
func (e *entry) look() (*node, error) {
	dir, err := e.open(nil)
	var n *node
	if err == nil {
		defer dir.Close()
		n, err = openNode(int(dir.Fd()), e.names[len(e.names)-1], e.place())
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil //nolint:nilnil // there is nothing
	case err != nil:
		return nil, err
	case n.isLink():
		n.close()
		return nil, notFollowed(n.path, e.tree)
	}
	return n, nil
}

// check reports what is at the place, or on the way to it, and cannot be written over or, if it is a directory, into.
func (e *entry) check(directory bool) error {
	defer e.close()
	n, err := e.look()
	if n == nil || err != nil {
		return err
	}
	defer n.close()
	switch {
	case directory && !n.isDir():
		return conflict("not a directory")
	case !directory && !n.isFile():
		return conflict("it is " + n.kind())
	}
	return nil
}
