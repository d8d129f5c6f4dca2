package device

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// NodeList is the file of a recorded host that lists its device nodes, one a line:
//
//	c 195:0 0666 0:0 /dev/nvidia0
//
// type, major and minor number, mode, owner and group, path.
const NodeList = "device-nodes"

// Host is a host seen from a root directory: this one, or a recorded one. All paths that it takes and returns
// are absolute within the root, and symbolic links do not lead out of it.
type Host struct {
	root  string
	nodes map[string]Node // of a recorded host; nil for one with real nodes
}

// Node is a device node.
type Node struct {
	Path         string
	Type         string // "c" or "b"
	Major, Minor uint32
	Mode         fs.FileMode // permissions
	UID, GID     uint32
}

// OpenHost returns the host with the given root directory. It is a recorded one if the root holds a NodeList.
func OpenHost(root string) (*Host, error) {
	info, err := os.Stat(root)
	if err == nil && !info.IsDir() {
		err = errors.New("it is no directory")
	}
	if err != nil {
		return nil, fmt.Errorf("host %s: %w: %w", root, berth.ErrInvalid, err)
	}
	h := &Host{root: filepath.Clean(root)}
	data, err := os.ReadFile(filepath.Join(root, NodeList))
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err == nil {
		h.nodes, err = parseNodes(data)
	}
	if err != nil {
		return nil, fmt.Errorf("host %s: %s: %w", root, NodeList, err)
	}
	return h, nil
}

func parseNodes(data []byte) (map[string]Node, error) {
	nodes := map[string]Node{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		var node Node
		_, err := fmt.Sscanf(line, "%s %d:%d %o %d:%d %s", &node.Type, &node.Major, &node.Minor, &node.Mode, &node.UID, &node.GID, &node.Path)
		if err != nil || node.Type != "c" && node.Type != "b" || !path.IsAbs(node.Path) || node.Mode != node.Mode.Perm() {
			return nil, fmt.Errorf("%w: line %d: %q is not of the form: c 195:0 0666 0:0 /dev/nvidia0", berth.ErrInvalid, n, line)
		}
		nodes[path.Clean(node.Path)] = node
	}
	return nodes, lines.Err()
}

func (n Node) String() string {
	return fmt.Sprintf("%s %d:%d %04o %d:%d %s", n.Type, n.Major, n.Minor, n.Mode.Perm(), n.UID, n.GID, n.Path)
}

// Root returns the root directory.
func (h *Host) Root() string { return h.root }

// Recorded reports whether the host is a recorded one.
func (h *Host) Recorded() bool { return h.nodes != nil }

// CDI returns the host as package cdi sees it.
func (h *Host) CDI() cdi.Host {
	c := cdi.Host{Root: h.root}
	if h.nodes != nil {
		c.Node = func(name string) (cdi.Node, error) {
			n, err := h.Node(name)
			return cdi.Node{Type: n.Type, Major: int64(n.Major), Minor: int64(n.Minor), Mode: n.Mode, UID: n.UID, GID: n.GID}, err
		}
	}
	return c
}

// Resolve follows the symbolic links in a path; the result lies within the root. What it leads to need not
// exist. It gives up after 255 links.
func (h *Host) Resolve(name string) (string, error) {
	done, rest := "/", path.Clean("/"+name)
	for links := 0; rest != ""; {
		var first string
		first, rest, _ = strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		switch first {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, first)
		target, err := os.Readlink(filepath.Join(h.root, next))
		if err != nil {
			done = next
			continue
		}
		if links++; links > 255 {
			return "", fmt.Errorf("%s: %w", name, unix.ELOOP)
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = target + "/" + rest
	}
	return done, nil
}

// at returns where a path of the host lies on this machine.
func (h *Host) at(name string) (string, error) {
	if h.root == "/" {
		return path.Clean("/" + name), nil // the kernel resolves it as well, and faster
	}
	// Most paths have no links, and the kernel knows that at once.
	file := filepath.Join(h.root, path.Clean("/"+name))
	fd, err := unix.Openat2(unix.AT_FDCWD, file, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err == nil {
		_ = unix.Close(fd)
		return file, nil
	}
	resolved, err := h.Resolve(name)
	return filepath.Join(h.root, resolved), err
}

// ReadFile reads a file.
func (h *Host) ReadFile(name string) ([]byte, error) {
	file, err := h.at(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// Text reads a file of one line, as the kernel tells of devices; "" if it is not there, or cannot be read.
func (h *Host) Text(name string) string {
	data, err := h.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// Open opens a file for reading.
func (h *Host) Open(name string) (*os.File, error) {
	file, err := h.at(name)
	if err != nil {
		return nil, err
	}
	return os.Open(file)
}

// Stat describes what a path leads to; for the nodes of a recorded host there is Node.
func (h *Host) Stat(name string) (fs.FileInfo, error) {
	file, err := h.at(name)
	if err != nil {
		return nil, err
	}
	return os.Stat(file)
}

// Readlink returns the target of a symbolic link, as it is written.
func (h *Host) Readlink(name string) (string, error) {
	dir, err := h.at(path.Dir(name))
	if err != nil {
		return "", err
	}
	return os.Readlink(filepath.Join(dir, path.Base(name)))
}

// Glob returns the files, and in recorded hosts the nodes, that match a pattern of path.Match, sorted.
func (h *Host) Glob(pattern string) []string {
	found := map[string]bool{}
	for name := range h.nodes {
		if ok, _ := path.Match(pattern, name); ok {
			found[name] = true
		}
	}
	dirs := []string{"/"}
	parts := strings.Split(strings.Trim(path.Clean(pattern), "/"), "/")
	for i, part := range parts {
		var next []string
		for _, dir := range dirs {
			if i < len(parts)-1 && !isPattern(part) {
				next = append(next, path.Join(dir, part)) // what is beneath it tells whether it is there
				continue
			}
			next = append(next, h.matches(dir, part)...)
		}
		dirs = next
	}
	for _, name := range dirs {
		found[name] = true
	}
	return slices.Sorted(maps.Keys(found))
}

func isPattern(part string) bool { return strings.ContainsAny(part, `*?[\`) }

// matches returns the entries of one directory whose names match.
func (h *Host) matches(dir, part string) []string {
	at, err := h.at(dir)
	if err != nil {
		return nil
	}
	if !isPattern(part) {
		if _, err := os.Lstat(filepath.Join(at, part)); err != nil {
			return nil
		}
		return []string{path.Join(dir, part)}
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if ok, _ := path.Match(part, e.Name()); ok {
			names = append(names, path.Join(dir, e.Name()))
		}
	}
	return names
}

// Node describes a device node. The error is fs.ErrNotExist if there is none, and berth.ErrInvalid if something
// else has its name: a symbolic link is no node.
func (h *Host) Node(name string) (Node, error) {
	if h.nodes != nil {
		if n, ok := h.nodes[path.Clean(name)]; ok {
			return n, nil
		}
		return Node{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	dir, err := h.at(path.Dir(name))
	if err != nil {
		return Node{}, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, path.Base(name)), &st); err != nil {
		return Node{}, fmt.Errorf("%s: %w", name, err)
	}
	n := Node{
		Path: name, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		Mode: fs.FileMode(st.Mode & 0o777), UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		n.Type = "c"
	case unix.S_IFBLK:
		n.Type = "b"
	default:
		return Node{}, fmt.Errorf("%s: %w: it is not a device node", name, berth.ErrInvalid)
	}
	return n, nil
}
