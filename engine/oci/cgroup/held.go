package cgroup

import (
	"bytes"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/fds"
)

// maxHolders is how many groups of a host keep their files open: each some 25 descriptors and 100 KiB of the kernel's. One
// short container after another needs one or two of them; what has more at once has other costs.
const maxHolders = 4

// holders are the groups that keep open what is read of them again and again: those that were recycled last. To
// open a file costs ten times as much as to read it once more.
type holders struct {
	mu   sync.Mutex
	list []*Group // the one that was recycled last is the last
}

// add has the group keep its files open. The one that was recycled longest ago may have to close its own.
func (h *holders) add(g *Group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(slices.DeleteFunc(h.list, func(o *Group) bool { return o == g }), g)
	g.held.open()
	if len(h.list) > maxHolders {
		h.list[0].held.close()
		h.list = slices.Delete(h.list, 0, 1)
	}
}

// remove has the group close its files, and keep none open any more.
func (h *holders) remove(g *Group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = slices.DeleteFunc(h.list, func(o *Group) bool { return o == g })
	g.held.close()
}

// held are open files and directories of a group. What is asked of a file that was removed meanwhile fails: whoever
// asks then goes by the path.
type held struct {
	mu  sync.RWMutex     // held while a descriptor is used
	fds map[heldFile]int // nil: none are to be kept
}

type heldFile struct {
	path  string
	flags int // that it was opened with
}

func (h *held) open() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fds == nil {
		h.fds = map[heldFile]int{}
	}
}

func (h *held) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.fds {
		_ = unix.Close(fd)
	}
	h.fds = nil
}

// forget closes what is open of a directory: it may be another by now.
func (h *held) forget(dir string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f, fd := range h.fds {
		if f.path == dir || strings.HasPrefix(f.path, dir+"/") {
			_ = unix.Close(fd)
			delete(h.fds, f)
		}
	}
}

// use calls f with a descriptor that stays open, and reports whether that was so and f has answered no error.
func (h *held) use(path string, flags int, f func(fd int) error) bool {
	key := heldFile{path, flags}
	h.mu.RLock()
	fd, ok := h.fds[key]
	if !ok {
		on := h.fds != nil
		h.mu.RUnlock()
		if !on || !h.keep(key) {
			return false
		}
		h.mu.RLock()
		fd, ok = h.fds[key]
	}
	if !ok {
		h.mu.RUnlock()
		return false
	}
	err := f(fd)
	h.mu.RUnlock()
	if err != nil && flags == dirFlags {
		h.forget(path)
	} else if err != nil {
		h.forget(filepath.Dir(path))
	}
	return err == nil
}

// keep opens a file, unless others have.
func (h *held) keep(key heldFile) bool {
	fd, err := open(key.path, key.flags)
	if err != nil {
		return false
	}
	fd = fds.Aside(fd)
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.fds[key]; ok || h.fds == nil {
		_ = unix.Close(fd)
		return ok
	}
	h.fds[key] = fd
	return true
}

// read is read for a file of the group. Not for lists of processes: v1 answers those from what it found when the
// same open file was read before, for a second.
func (g *Group) read(path string) (b []byte, err error) {
	if g.held.use(path, unix.O_RDONLY, func(fd int) error {
		var buf [2048]byte // more than any of them has
		n, err := retry(func() (int, error) { return unix.Pread(fd, buf[:], 0) })
		if err == nil && n == len(buf) {
			err = io.ErrShortBuffer
		}
		b = bytes.Clone(buf[:max(n, 0)])
		return err
	}) {
		return b, nil
	}
	return read(path)
}

// readInt is readInt for a file of the group.
func (g *Group) readInt(path string) (int64, error) {
	b, err := g.read(path)
	if err != nil {
		return 0, err
	}
	return parseInt(b)
}

// readSigned reads a file of the group that holds one number, which may be negative.
func (g *Group) readSigned(path string) (int64, error) {
	b, err := g.read(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
}

// readKey reads one value of a file of the group: see parseKey.
func (g *Group) readKey(path, key string) (value int64, ok bool, err error) {
	b, err := g.read(path)
	if err != nil {
		return 0, false, err
	}
	return parseKey(b, key)
}

// zero writes "0" into a file of the group.
func (g *Group) zero(path string) error {
	if g.held.use(path, unix.O_WRONLY, func(fd int) error {
		_, err := retry(func() (int, error) { return unix.Pwrite(fd, []byte("0"), 0) })
		return err
	}) {
		return nil
	}
	return write(path, "0")
}

// procs reads the list of the processes in one of the group's directories.
func (g *Group) procs(dir string) (b []byte, err error) {
	if g.held.use(dir, dirFlags, func(at int) error {
		fd, err := retry(func() (int, error) {
			return unix.Openat(at, "cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		})
		if err == nil {
			b, err = readAll(fd, dir+"/cgroup.procs")
		}
		return err
	}) {
		return b, nil
	}
	return read(dir + "/cgroup.procs")
}

// walkBelow calls f for each cgroup below one of the group's directories: see walk.
func (g *Group) walkBelow(dir string, f func(dir string) error) error {
	if leaf, err := g.leaf(dir); err != nil || leaf {
		return nil //nolint:nilerr // one that is gone has none
	}
	return walkBelow(dir, f)
}

// leaf reports whether there are no cgroups below one of the group's directories.
func (g *Group) leaf(dir string) (bool, error) {
	var st unix.Stat_t
	if !g.held.use(dir, dirFlags, func(fd int) error { return unix.Fstat(fd, &st) }) {
		if err := unix.Lstat(dir, &st); err != nil {
			return false, err
		}
	}
	// A directory of cgroups counts those below it in its links.
	return st.Nlink == 2, nil
}

const dirFlags = unix.O_PATH | unix.O_DIRECTORY
