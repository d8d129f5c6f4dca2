package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Target is where a file is written that a user names on this host: there, or, where that is a symbolic link, at
// what it leads to, which need not be there, but its directory. So the link stays. The error, of kind ErrConflict,
// says what is there that is no file. It is one too where a link is another user's, or might be
// put there by one, who could have any file of this user written, or one of /proc: what a process has open is not to be replaced.
//
// writable are the real paths of what of this host a task could write to: what lies there is the file itself, and no link
// there, also on the way to it, is followed. Whoever writes to such a file opens its directory with OpenParent.
func Target(name string, writable []string) (string, error) {
	t, err := newTrees(writable)
	if err != nil {
		return "", err
	}
	return t.target(name)
}

// Within is the one of the trees that a task could write to in which a file lies, by whatever way; "" for none.
func Within(name string, writable []string) (string, error) {
	t, err := newTrees(writable)
	if err != nil {
		return "", err
	}
	e, err := t.enter(name, true)
	if e == nil {
		return "", err
	}
	e.close()
	return e.tree, nil
}

// OpenParent opens the directory that holds a file as Target named it, for what is done by name there: it need not be readable.
func OpenParent(name string, writable []string) (*os.File, error) {
	t, err := newTrees(writable)
	if err != nil {
		return nil, err
	}
	e, err := t.enter(name, false)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return os.OpenFile(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	defer e.close()
	return e.open(nil)
}

func (t *trees) target(name string) (string, error) {
	for links := 0; ; links++ {
		e, err := t.enter(name, false)
		if err != nil {
			return "", err
		}
		if e != nil {
			return e.place(), e.check(false)
		}
		n, err := openNode(unix.AT_FDCWD, name, name)
		if err != nil {
			return name, nil //nolint:nilerr // whoever writes it says what is wrong with its directory
		}
		next, err := n.follow(name, t)
		n.close()
		switch {
		case err != nil:
			return "", err
		case next == name:
			return name, nil
		case links == maxLinks:
			return "", conflict("its symbolic links lead in a circle")
		}
		name = next
	}
}

// follow is where the link at a host path leads to, or the path itself if it is a file. Where the way goes on through what a
// task could write to, nothing there is followed yet.
func (n *node) follow(name string, t *trees) (string, error) {
	if n.isFile() {
		return name, nil
	}
	if !n.isLink() {
		return "", conflict("it is " + n.kind())
	}
	if uid := int(n.stat.Uid); uid != 0 && uid != os.Geteuid() {
		return "", conflict(fmt.Sprintf("%s is a symbolic link of another user (%d), which is not followed; name the file itself", name, uid))
	}
	dir := filepath.Dir(name)
	if err := ours(dir); err != nil {
		return "", conflict(fmt.Sprintf("%s is a symbolic link in %s, %v, and not followed; name the file itself", name, dir, err))
	}
	var where unix.Statfs_t
	if err := unix.Statfs(dir, &where); err != nil {
		return "", conflict(fmt.Sprintf("what %s is cannot be told (%v)", dir, err))
	}
	if int64(where.Type) == unix.PROC_SUPER_MAGIC {
		return "", conflict("it leads to what a process has open, and to no file")
	}
	text, err := readLink(n)
	if err != nil {
		return "", conflict(fmt.Sprintf("%s cannot be read (%s)", name, reason(err)))
	}
	// Not cleaned: a .. after a link is the kernel's to resolve.
	next := text
	if !filepath.IsAbs(next) {
		next = dir + "/" + next
	}
	next = strings.TrimRight(next, "/")
	at := strings.LastIndexByte(next, '/')
	if at < 0 {
		return "", conflict("it is the root directory of this host")
	}
	if e, err := t.enter(next, false); err != nil {
		return "", err
	} else if e != nil {
		e.close()
		return next, nil
	}
	if dir, err = filepath.EvalSymlinks(next[:at] + "/"); err != nil {
		return "", conflict(fmt.Sprintf("it is a symbolic link to %s, whose directory cannot be opened (%s)", text, reason(err)))
	}
	return filepath.Join(dir, next[at+1:]), nil
}

// ours reports that other users may put what they like, links of this user too, in a place in a directory.
func ours(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("a directory of another user (%d)", st.Uid)
	}
	group := st.Mode&0o020 != 0 && int(st.Gid) != os.Getegid()
	if st.Mode&unix.S_ISVTX == 0 && (st.Mode&0o002 != 0 || group) {
		return errors.New("a directory that others may write to")
	}
	return nil
}

// CheckTarget reports what is at an output's place on this host and cannot be written over or into, as far as
// that can be said before it is known what is written. It returns the place, links of files followed; writable is as for Target.
func CheckTarget(o berth.Output, writable []string) (string, error) {
	dest, local, err := HostPath(o.URL)
	if err != nil || !local {
		return "", err
	}
	t, err := newTrees(writable)
	if err != nil {
		return "", destFault(o.Path, dest, err)
	}
	st, err := os.Stat(dest)
	switch there := err == nil; {
	case IsPattern(o.Path), o.Type == berth.Directory, strings.HasSuffix(o.URL, "/"):
		err = t.intoDir(dest, st, there)
	case o.Type == berth.File || !there || !st.IsDir():
		var to string
		if to, err = t.target(dest); err == nil {
			return to, nil
		}
	default: // a directory is merged into it, and a file put there
		err = t.intoDir(dest, st, there)
	}
	if err != nil {
		return "", destFault(o.Path, dest, err)
	}
	return dest, nil
}

// holdsFile reports whether a file whose place on this host is dest goes into it: as with cp, if it is a directory, or a
// link to one that Target would follow to a file.
func holdsFile(dest string) bool {
	if st, err := os.Stat(dest); err != nil || !st.IsDir() {
		return false
	}
	var link unix.Stat_t
	if err := unix.Lstat(dest, &link); err != nil {
		return false
	}
	if link.Mode&unix.S_IFMT != unix.S_IFLNK {
		return true
	}
	uid := int(link.Uid)
	return (uid == 0 || uid == os.Geteuid()) && ours(filepath.Dir(dest)) == nil
}

// intoDir reports why nothing can be written into a directory. One that is not there can be made.
func (t *trees) intoDir(dest string, st fs.FileInfo, there bool) error {
	e, err := t.enter(dest, true)
	if err == nil && e != nil {
		err = e.check(true)
	}
	if err != nil {
		return err
	}
	if !there {
		if _, err := os.Lstat(dest); err == nil {
			return conflict("it is a symbolic link that leads nowhere")
		}
		return nil
	}
	if !st.IsDir() {
		return conflict("not a directory")
	}
	if err := unix.Access(dest, unix.W_OK|unix.X_OK); err != nil {
		return conflict(fmt.Sprintf("the directory is not writable (%v)", err))
	}
	return nil
}

// CheckMake reports why nothing can be made in a directory that lets this user write: file systems of the
// kernel's own have no files of others. A full one may have room by the time.
func CheckMake(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return unix.Close(fd)
	}
	tmp, err := os.MkdirTemp(dir, ".berth-*.tmp") // not every file system has nameless files
	if err == nil {
		return os.Remove(tmp)
	}
	if errors.Is(kindOf(err), berth.ErrExhausted) {
		return nil
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return err
}
