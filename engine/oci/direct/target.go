package direct

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// maxLinks is how many symbolic links a path may lead through, as in the kernel.
const maxLinks = 40

// content says what a mount that is planned will show.
type content uint8

const (
	contentHost  content = iota // a directory of the host, open: it can be read before the container starts
	contentEmpty                // a new tmpfs: what is not made in it is not there
	contentFixed                // proc, sysfs and the like: nothing can be made in it
	contentFile                 // no directory
)

// planned is a mount that the child will make.
type planned struct {
	at      string // canonical path in the container
	content content
	fd      int             // of contentHost
	mount   arg             // register or descriptor of the mount
	made    map[string]bool // of contentEmpty: the directories made in it, by canonical path; false is a file
}

// view is the container's file system before it exists: the root, and the mounts planned so far. It finds
// out where a path leads, within the root whatever links say, and makes what is missing: on the host where
// a directory of the host is concerned, with steps of the child in a new file system.
type view struct {
	root   int // descriptor of the root
	owner  int // uid and gid on the host of what is made; -1 leaves it
	group  int
	mounts []planned
	b      *builder
	last   parent
}

// parent is the directory of the path that was resolved last. What is lent to a container brings many files that lie
// in one directory, one after another.
type parent struct {
	name   string // as it was named; "" is none
	stack  []place
	mounts int // how many were planned then
}

// remember keeps the directory that a walk has come to.
func (v *view) remember(name string, w *walk) {
	v.forget()
	v.last = parent{name: name, stack: slices.Clone(w.stack), mounts: len(v.mounts)}
	for i := range w.stack { // they are closed with the view, or with the next that is kept
		w.stack[i].owned = false
	}
}

// resume is the way to a directory that is kept; nil where it is another. A mount of a directory since then could lie
// upon it.
func (v *view) resume(name string) []place {
	if v.last.name == "" || v.last.name != name {
		return nil
	}
	for _, m := range v.mounts[v.last.mounts:] {
		if m.content != contentFile {
			v.forget()
			return nil
		}
	}
	stack := slices.Clone(v.last.stack)
	for i := range stack {
		stack[i].owned = false
	}
	return stack
}

// forget closes what remember has kept.
func (v *view) forget() {
	for _, p := range v.last.stack {
		if p.owned {
			_ = unix.Close(p.fd)
		}
	}
	v.last = parent{}
}

// place is one directory on the way to a target.
type place struct {
	at    string
	fd    int // -1 in what is not on the host
	owned bool
	mount int // index in view.mounts; -1 is the root
}

// target resolves a path of the container to one without links, and makes it: a directory with its parents,
// or an empty file. mode is that of what was found; 0 where it was made or is not on the host.
func (v *view) target(name string, dir bool) (canonical string, mode uint32, err error) {
	w := walk{v: v}
	defer w.close()
	above, base := path.Split(name)
	rest := []string{base}
	// What such a name is in is a directory; another may be a file.
	resumed := base == "" || base == "." || base == ".."
	if !resumed {
		w.stack = v.resume(above)
		resumed = w.stack != nil
	}
	if w.stack == nil {
		w.stack = []place{{at: "/", fd: v.root, mount: -1}}
		if i := v.mountAt("/"); i >= 0 {
			w.stack = append(w.stack, v.enter(i))
		}
		rest = strings.Split(name, "/")
	}
	links := 0
	for len(rest) > 0 {
		if len(rest) == 1 && !resumed { // all but the last name of the path is resolved
			resumed = true
			v.remember(above, &w)
		}
		comp := rest[0]
		rest = rest[1:]
		switch comp {
		case "", ".":
			continue
		case "..":
			w.up()
			continue
		}
		link, m, err := w.step(comp, dir || more(rest))
		if err != nil {
			return "", 0, fmt.Errorf("%s: %w", name, err)
		}
		if link != "" {
			if links++; links > maxLinks {
				return "", 0, fmt.Errorf("%s: %w", name, unix.ELOOP)
			}
			if link[0] == '/' {
				w.rewind()
			}
			rest = append(strings.Split(link, "/"), rest...)
		}
		mode = m
	}
	return w.top().at, mode, nil
}

// more reports whether the components name anything.
func more(rest []string) bool {
	for _, c := range rest {
		if c != "" && c != "." {
			return true
		}
	}
	return false
}

// covers reports whether one of the mounts planned so far has what is at the canonical path.
func (v *view) covers(at string) bool {
	return slices.ContainsFunc(v.mounts, func(m planned) bool {
		return m.content != contentFile && (m.at == "/" || strings.HasPrefix(at, m.at) && (len(at) == len(m.at) || at[len(m.at)] == '/'))
	})
}

// mountAt is the index of the topmost mount at the canonical path.
func (v *view) mountAt(at string) int {
	for i, m := range slices.Backward(v.mounts) {
		if m.at == at {
			return i
		}
	}
	return -1
}

func (v *view) enter(i int) place {
	m := &v.mounts[i]
	if m.content != contentHost {
		return place{at: m.at, fd: -1, mount: i}
	}
	return place{at: m.at, fd: m.fd, mount: i}
}

// walk is one resolution.
type walk struct {
	v     *view
	stack []place
}

func (w *walk) top() place { return w.stack[len(w.stack)-1] }

func (w *walk) pop() {
	if t := w.top(); t.owned {
		_ = unix.Close(t.fd)
	}
	w.stack = w.stack[:len(w.stack)-1]
}

func (w *walk) close() {
	for len(w.stack) > 0 {
		w.pop()
	}
}

// up goes to the parent directory; at the root it stays.
func (w *walk) up() {
	at := w.top().at
	if at == "/" {
		return
	}
	for w.top().at == at {
		w.pop()
	}
}

// rewind goes to the root.
func (w *walk) rewind() {
	for w.top().at != "/" {
		w.pop()
	}
}

// step goes to the entry comp of the current directory, making it where it is missing. It answers the text
// of a link instead of following it.
func (w *walk) step(comp string, dir bool) (link string, mode uint32, err error) {
	cur := w.top()
	at := path.Join(cur.at, comp)
	if i := w.v.mountAt(at); i >= 0 {
		if w.v.mounts[i].content == contentFile && dir {
			return "", 0, unix.ENOTDIR
		}
		w.stack = append(w.stack, w.v.enter(i))
		return "", 0, nil
	}
	if cur.fd < 0 {
		return "", 0, w.stepNew(cur, at, dir)
	}
	for range 3 {
		link, mode, err = w.stepHost(cur, at, comp, dir)
		if !errors.Is(err, unix.EEXIST) {
			break // EEXIST: somebody else made the same thing at this moment
		}
	}
	return link, mode, err
}

// stepNew goes on in a file system that is not there yet.
func (w *walk) stepNew(cur place, at string, dir bool) error {
	if m := &w.v.mounts[cur.mount]; m.content == contentEmpty {
		isDir, known := m.made[at]
		switch {
		case !known:
			w.v.makeNew(m, at, dir)
		case dir && !isDir:
			return unix.ENOTDIR
		}
	}
	w.stack = append(w.stack, place{at: at, fd: -1, mount: cur.mount})
	return nil
}

// makeNew adds the step that makes a directory or file in a new file system.
func (v *view) makeNew(m *planned, at string, dir bool) {
	if m.made == nil {
		m.made = map[string]bool{}
	}
	m.made[at] = dir
	rel := v.b.str(strings.TrimPrefix(strings.TrimPrefix(at, m.at), "/"))
	v.b.doing("make", at)
	if dir {
		v.b.call(unix.SYS_MKDIRAT, m.mount, rel, 0o755)
	} else {
		v.b.call(unix.SYS_MKNODAT, m.mount, rel, unix.S_IFREG|0o755, 0)
	}
}

// stepHost goes on in a directory of the host: one name at a time, by descriptor, following nothing.
func (w *walk) stepHost(cur place, at, comp string, dir bool) (link string, mode uint32, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(cur.fd, comp, &st, unix.AT_SYMLINK_NOFOLLOW)
	made := false
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := w.v.makeHost(cur.fd, comp, dir); err != nil {
			return "", 0, err
		}
		made = true
		st.Mode = unix.S_IFREG
		if dir {
			st.Mode = unix.S_IFDIR
		}
	case err != nil:
		return "", 0, err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(cur.fd, comp, buf)
		if err != nil {
			return "", 0, err
		}
		if n == 0 {
			return "", 0, unix.ENOENT
		}
		return string(buf[:n]), 0, nil
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		fd, err := unix.Openat(cur.fd, comp, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", 0, err
		}
		w.stack = append(w.stack, place{at: at, fd: fd, owned: true, mount: cur.mount})
	case dir:
		return "", 0, unix.ENOTDIR
	default:
		w.stack = append(w.stack, place{at: at, fd: -1, mount: cur.mount})
	}
	if made {
		return "", 0, nil
	}
	return "", st.Mode & 0o7777, nil
}

// makeHost makes a directory or empty file, 0755 as runc does.
func (v *view) makeHost(fd int, comp string, dir bool) error {
	var err error
	if dir {
		err = unix.Mkdirat(fd, comp, 0o755)
	} else {
		err = unix.Mknodat(fd, comp, unix.S_IFREG|0o755, 0)
	}
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("it is not there, and cannot be made on a read-only file system: %w: %w", berth.ErrInvalid, err)
	}
	if err != nil || v.owner < 0 {
		return err
	}
	return unix.Fchownat(fd, comp, v.owner, v.group, unix.AT_SYMLINK_NOFOLLOW)
}
