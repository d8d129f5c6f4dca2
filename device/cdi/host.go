package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/inroot"
)

// Host is the machine whose devices go into containers. The zero value is this machine.
type Host struct {
	// Root is the directory in which the host's files lie: "" or "/", or a recorded host.
	Root string
	// Node looks at a device node, for recorded hosts whose nodes are a list and not files. It follows no
	// link, and its error is fs.ErrNotExist where there is nothing. Nil looks beneath Root.
	Node func(path string) (Node, error)
}

// Node is a device node, as it is on a host.
type Node struct {
	Type         string // "c", "b" or "p"; "" is no device node
	Major, Minor int64
	Mode         os.FileMode // permissions
	UID, GID     uint32
}

func (h Host) open() (*inroot.Root, error) {
	if h.Root == "" {
		return inroot.Open("/")
	}
	return inroot.Open(h.Root)
}

func (h Host) node(path string) (Node, error) {
	if h.Node != nil {
		return h.Node(path)
	}
	root, err := h.open()
	if err != nil {
		return Node{}, err
	}
	defer root.Close()
	st, err := root.Lstat(path)
	if err != nil {
		return Node{}, err
	}
	n := Node{Mode: os.FileMode(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid}
	n.Major, n.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		n.Type = "c"
	case unix.S_IFBLK:
		n.Type = "b"
	case unix.S_IFIFO:
		n.Type = "p"
	}
	return n, nil
}

// exists says whether there is something at path, following links, and whether that is a directory.
func (h Host) exists(root *inroot.Root, path string) (there, dir bool, err error) {
	if h.Node != nil {
		if _, err := h.Node(path); err == nil {
			return true, false, nil
		}
	}
	var st unix.Stat_t
	if h.Root == "" || h.Root == "/" { // in one system call
		err = unix.Stat(path, &st)
	} else {
		st, err = root.Stat(path)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, false, nil
	}
	return err == nil, st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// number is how a node's numbers are written.
func number(major, minor int64) string { return fmt.Sprintf("%d:%d", major, minor) }
