package scratch

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// dirent is one entry of a directory.
type dirent struct {
	name string
	kind byte // DT_*
}

// readDir calls fn with the entries of an open directory, some at a time. A directory may be larger than
// what should be held in memory.
func readDir(fd int, fn func([]dirent) error) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return err
		}
		if err := fn(parseDirents(buf[:n])); err != nil {
			return err
		}
	}
}

// parseDirents reads what getdents64 wrote: inode (8 bytes), offset (8), length (2), type (1), name, NUL.
func parseDirents(buf []byte) []dirent {
	var out []dirent
	for len(buf) >= 19 {
		length := int(binary.NativeEndian.Uint16(buf[16:]))
		if length < 19 || length > len(buf) {
			return out
		}
		name := buf[19:length]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, dirent{name: s, kind: buf[18]})
		}
		buf = buf[length:]
	}
	return out
}

// inode names a file on this host.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), st.Ino} }

// visitor is told of a tree by walk.
type visitor struct {
	// file is told of each entry that is no directory, by its open parent.
	file func(parent int, e dirent) error
	// enter is told of each directory, by its open parent, before it is opened, and reports whether it is to be passed over.
	enter func(parent int, name string) (over bool)
	// leave is told of each directory after its entries, by its open parent.
	leave func(parent int, name string) error
	// halt ends the walk where it gives an error; it is asked now and then.
	halt func() error
}

// frame is a directory that walk is in.
type frame struct {
	id   inode
	name string
	todo []string // subdirectories
}

// walk visits the tree below the open directory root, following no symbolic link and entering no other
// file system. It holds one directory open at a time, so the depth of a tree does not matter, and goes up
// by "..", checking that it came to where it was before: a tree may be moved about while it is walked.
func walk(root int, v visitor) error {
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return err
	}
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(fd) }()
	dirs, err := visit(fd, v)
	if err != nil {
		return err
	}
	stack := []frame{{id: inodeOf(&st), todo: dirs}}
	for {
		top := &stack[len(stack)-1]
		if len(top.todo) > 0 {
			name := top.todo[len(top.todo)-1]
			top.todo = top.todo[:len(top.todo)-1]
			if v.enter != nil && v.enter(fd, name) {
				continue
			}
			sub, id, err := openSub(fd, name, st.Dev)
			if err != nil {
				return err
			}
			if sub < 0 {
				if v.leave != nil {
					err = v.leave(fd, name)
				}
				if err != nil {
					return err
				}
				continue
			}
			unix.Close(fd)
			fd = sub
			dirs, err := visit(fd, v)
			if err != nil {
				return err
			}
			stack = append(stack, frame{id: id, name: name, todo: dirs})
			continue
		}
		if len(stack) == 1 {
			return nil
		}
		name := top.name
		stack = stack[:len(stack)-1]
		up, err := openParent(fd, stack[len(stack)-1].id)
		if err != nil {
			return err
		}
		unix.Close(fd)
		fd = up
		if v.leave != nil {
			if err := v.leave(fd, name); err != nil {
				return err
			}
		}
	}
}

// errMoved says that a directory was moved while it was walked.
var errMoved = errors.New("a directory was moved away while it was read")

func openParent(fd int, want inode) (int, error) {
	up, err := unix.Openat(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(up, &st); err != nil || inodeOf(&st) != want {
		unix.Close(up)
		return -1, errMoved
	}
	return up, nil
}

// openSub opens a subdirectory; -1 if it is gone, no directory any more, or of another file system.
func openSub(fd int, name string, dev uint64) (int, inode, error) {
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return -1, inode{}, nil
	case err != nil:
		return -1, inode{}, fmt.Errorf("%s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(sub, &st); err != nil || st.Dev != dev {
		unix.Close(sub)
		return -1, inode{}, err
	}
	return sub, inodeOf(&st), nil
}

// visit tells of the entries of one directory and returns its subdirectories.
func visit(fd int, v visitor) (dirs []string, err error) {
	err = readDir(fd, func(entries []dirent) error {
		if v.halt != nil {
			if err := v.halt(); err != nil {
				return err
			}
		}
		for _, e := range entries {
			if e.kind == unix.DT_UNKNOWN {
				e.kind = kindAt(fd, e.name)
			}
			if e.kind == unix.DT_DIR {
				dirs = append(dirs, e.name)
			} else if err := v.file(fd, e); err != nil {
				return err
			}
		}
		return nil
	})
	return dirs, err
}

func kindAt(fd int, name string) byte {
	var st unix.Stat_t
	if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return unix.DT_UNKNOWN
	}
	return byte(st.Mode & unix.S_IFMT >> 12)
}
