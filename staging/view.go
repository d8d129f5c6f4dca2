package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Mount is a part of a container's file tree that this host can read: a volume, or what was mounted
// read-only from this host.
type Mount struct {
	Path string // in the container, absolute
	// Root is a volume. Processes of the container may change it while it is read.
	Root *os.Root
	// HostPath is a file or directory of this host, where Root is nil.
	HostPath string
}

// View is the file tree of a container as its steps see it: mounts on top of each other, and nothing else.
// Paths are resolved as in the container: absolute symbolic links begin at the container's root, ".." ends
// there, and no path leads out of the mounts, even while hostile processes move things about.
//
// A View may be used by several goroutines, as long as the roots of its mounts stay open.
type View struct {
	mounts map[string]Mount
	below  map[string][]string // directory -> names of the mount points, or of directories above such, in it
}

// NewView makes a view of mounts. Of two at the same path the later one counts. ErrInvalid for a path that
// is not absolute or a mount without content.
func NewView(mounts ...Mount) (*View, error) {
	v := &View{mounts: map[string]Mount{}, below: map[string][]string{}}
	for _, m := range mounts {
		if err := checkContainerPath(m.Path); err != nil {
			return nil, err
		}
		if m.Root == nil && m.HostPath == "" {
			return nil, fmt.Errorf("mount %s: %w: it shows nothing", m.Path, berth.ErrInvalid)
		}
		m.Path = path.Clean(m.Path)
		v.mounts[m.Path] = m
		for p := m.Path; p != "/"; p = path.Dir(p) {
			dir, name := path.Dir(p), path.Base(p)
			if !slices.Contains(v.below[dir], name) {
				v.below[dir] = append(v.below[dir], name)
			}
		}
	}
	return v, nil
}

// What may be wrong with a path in a view.
var (
	errNotThere = errors.New("no such file or directory")
	errOutside  = errors.New("outside the volumes and mounts of the task")
	errCycle    = errors.New("too many levels of symbolic links")
)

const (
	maxLinks = 40  // as in Linux
	maxDepth = 256 // of directories; each holds a descriptor while what is in it is collected
)

// node is a file, directory or symbolic link in a view, opened without effect on it (O_PATH).
type node struct {
	path string // in the container, resolved
	fd   int    // -1: a directory that is there only because mounts are below it
	stat unix.Stat_t
	root bool // of a mount
}

func (n *node) close() {
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

func (n *node) format() uint32 { return n.stat.Mode & unix.S_IFMT }

func (n *node) isDir() bool { return n.fd < 0 || n.format() == unix.S_IFDIR }

func (n *node) isFile() bool { return n.fd >= 0 && n.format() == unix.S_IFREG }

func (n *node) isLink() bool { return n.fd >= 0 && n.format() == unix.S_IFLNK }

// kind names what the node is, for people.
func (n *node) kind() string {
	if n.isDir() {
		return "a directory"
	}
	switch n.format() {
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a named pipe"
	case unix.S_IFSOCK:
		return "a socket"
	default:
		return "a device"
	}
}

// replaceable reports whether an output may take the node's place.
func (n *node) replaceable() bool { return n.format() == unix.S_IFREG || n.format() == unix.S_IFLNK }

// open opens a regular file for reading. It is opened through its descriptor: by name it might have become
// a pipe or device meanwhile, whose opening blocks or has effects.
func (n *node) open() (*os.File, error) {
	fd, err := unix.Open(procPath(n.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: n.path, Err: err}
	}
	return os.NewFile(uintptr(fd), n.path), nil
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// top is the root of the container.
func (v *View) top() (*node, error) {
	if m, ok := v.mounts["/"]; ok {
		return openMount(m)
	}
	return &node{path: "/", fd: -1}, nil
}

// child opens what dir holds under name, without following it. What is mounted there counts.
func (v *View) child(dir *node, name string) (*node, error) {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return nil, fmt.Errorf("name %q: %w", name, berth.ErrInvalid)
	}
	p := path.Join(dir.path, name)
	if m, ok := v.mounts[p]; ok {
		return openMount(m)
	}
	if dir.fd < 0 {
		if _, above := v.below[p]; above {
			return &node{path: p, fd: -1}, nil
		}
		return nil, errOutside
	}
	n, err := openNode(dir.fd, name, p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		if _, above := v.below[p]; above {
			return &node{path: p, fd: -1}, nil
		}
		return nil, errNotThere
	}
	return n, err
}

func openNode(dir int, name, p string) (*node, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: err}
	}
	n := &node{path: p, fd: fd}
	if err := unix.Fstat(fd, &n.stat); err != nil {
		n.close()
		return nil, &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	return n, nil
}

func openMount(m Mount) (*node, error) {
	var n *node
	var err error
	if m.Root != nil {
		var dir *os.File
		if dir, err = m.Root.Open("."); err == nil {
			n, err = openNode(int(dir.Fd()), ".", m.Path)
			dir.Close()
		}
	} else {
		// The host's own path, and no container's: its links are followed.
		var fd int
		if fd, err = unix.Open(m.HostPath, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
			n = &node{path: m.Path, fd: fd}
			err = unix.Fstat(fd, &n.stat)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", m.Path, err)
	}
	n.root = true
	return n, nil
}

// resolve opens the file or directory at a container path. A link at its end is followed if follow.
func (v *View) resolve(p string, follow bool) (*node, error) {
	at, err := v.top()
	if err != nil {
		return nil, err
	}
	stack := []*node{at} // the directories from the root down
	defer func() {
		for _, n := range stack {
			n.close()
		}
	}()
	todo := strings.Split(p, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		dir := stack[len(stack)-1]
		if !dir.isDir() {
			return nil, errNotThere
		}
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			if len(stack) > 1 {
				dir.close()
				stack = stack[:len(stack)-1]
			}
			continue
		}
		if len(stack) > maxDepth {
			return nil, fmt.Errorf("%w: more than %d directories deep", berth.ErrInvalid, maxDepth)
		}
		n, err := v.child(dir, name)
		if err != nil {
			return nil, err
		}
		if !n.isLink() || !follow && len(todo) == 0 {
			stack = append(stack, n)
			continue
		}
		if links++; links > maxLinks {
			n.close()
			return nil, errCycle
		}
		target, err := readLink(n)
		n.close()
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(target, "/") {
			for _, d := range stack[1:] {
				d.close()
			}
			stack = stack[:1]
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	n := stack[len(stack)-1]
	stack = stack[:len(stack)-1]
	return n, nil
}

// readLink reads the target of a link. An empty name reads the link that the descriptor is.
func readLink(n *node) (string, error) {
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: n.path, Err: err}
	}
	return string(buf[:size]), nil
}

// names lists what a directory holds, with what is mounted in it, sorted.
func (v *View) names(dir *node) ([]string, error) {
	var names []string
	if dir.fd >= 0 {
		fd, err := unix.Openat(dir.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: dir.path, Err: err}
		}
		f := os.NewFile(uintptr(fd), dir.path)
		defer f.Close()
		if names, err = f.Readdirnames(-1); err != nil {
			return nil, err
		}
	}
	names = append(names, v.below[dir.path]...)
	slices.Sort(names)
	return slices.Compact(names), nil
}
