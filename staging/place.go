package staging

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// place is where one output is going to be: written beside it under a temporary name, then renamed.
type place struct {
	c    *collector
	dir  *os.File // that holds it
	name string
	tmp  string // its temporary name in dir
	made bool   // there is something under tmp
	tree string // that the task could write to, and in which dir lies; "" for none
	dirs []madeDir
}

// madeDir is a directory that was made for a place.
type madeDir struct {
	parent *os.File
	name   string
}

// tmpName is the form of temporary names. What does not have it is never removed as a leftover.
var tmpName = regexp.MustCompile(`(?s)^\..{1,255}\.berth-[A-Z2-7]{10}\.tmp$`)

const (
	tmpRandom  = 10  // characters of [A-Z2-7]: 50 bits
	tmpMaxName = 200 // bytes of the name that are kept, so that the temporary one is not too long
)

// RemoveLeftovers removes the temporary files and directories that an earlier Collect told its Journal of
// and did not come to remove. Paths without the form of such names are an error (ErrInvalid) and stay.
func RemoveLeftovers(paths []string) error {
	var errs []error
	for _, p := range paths {
		if !filepath.IsAbs(p) || !tmpName.MatchString(filepath.Base(p)) {
			errs = append(errs, fmt.Errorf("remove leftover %q: %w: not a name of a temporary output", p, berth.ErrInvalid))
			continue
		}
		// A file system that was mounted read-only meanwhile refuses also to remove what is not there.
		if err := removeAll(p); err != nil && there(p) {
			errs = append(errs, fmt.Errorf("remove leftover: %w", err))
		}
	}
	return errors.Join(errs...)
}

func there(name string) bool {
	_, err := os.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// begin makes the directory in which dest will be and chooses its temporary name. A link that dest itself is leads to the
// place only if follow, and then only into what the task could write to: else whoever gives it its name sees to that.
func (c *collector) begin(dest string, follow bool) (*place, error) {
	if dest == "/" {
		return nil, conflict("it is the root directory of this host")
	}
	e, err := c.trees.enter(dest, follow)
	if err != nil {
		return nil, err
	}
	p := &place{c: c}
	if e != nil {
		defer e.close()
		dest, p.tree = e.place(), e.tree
		p.dir, err = p.enterDirs(e)
	} else {
		p.dir, err = p.makeDirs(filepath.Dir(dest))
	}
	if err != nil {
		err = errors.Join(err, p.abandon())
		p.close()
		return nil, err
	}
	p.name = filepath.Base(dest)
	// Valid UTF-8, as the journal is text, though the name be not, or be cut in a character.
	p.tmp = "." + strings.ToValidUTF8(p.name[:min(len(p.name), tmpMaxName)], "_") + ".berth-" + rand.Text()[:tmpRandom] + ".tmp"
	if c.opts.Journal != nil {
		if err := c.opts.Journal(filepath.Join(filepath.Dir(dest), p.tmp)); err != nil {
			err = errors.Join(err, p.abandon())
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// makeDirs makes a directory and its parents, those that are made with the outputs' owner, and opens it.
func (p *place) makeDirs(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err == nil {
		info, err := f.Stat()
		if err == nil && !info.IsDir() {
			err = &fs.PathError{Op: "open", Path: dir, Err: unix.ENOTDIR}
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parent, err := p.makeDirs(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := p.mkdir(parent, filepath.Base(dir)); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// enterDirs is makeDirs for what lies where the task could write.
func (p *place) enterDirs(e *entry) (*os.File, error) {
	dir, err := e.open(p.mkdir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := openDir(int(dir.Fd()), ".") // to sync it takes a descriptor for reading
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// mkdir makes a directory, unless it is there, with the outputs' owner.
func (p *place) mkdir(parent *os.File, name string) error {
	fd := int(parent.Fd())
	err := unix.Mkdirat(fd, name, 0o777)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil {
		var kept int
		if kept, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			p.dirs = append(p.dirs, madeDir{os.NewFile(uintptr(kept), parent.Name()), name})
			err = p.c.own(fd, fd, name)
		}
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: filepath.Join(parent.Name(), name), Err: err}
	}
	return nil
}

// own gives what was made under name in a directory, or with no name what fd is, to the outputs' owner.
func (c *collector) own(dir, fd int, name string) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	uid, gid := c.owner()
	var parent, st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, flags); err != nil {
		return err
	}
	if err := unix.Fstat(dir, &parent); err != nil {
		return err
	}
	if parent.Mode&unix.S_ISGID != 0 {
		gid = int(st.Gid)
	}
	if int(st.Uid) == uid && int(st.Gid) == gid {
		return nil
	}
	err := unix.Fchownat(fd, name, uid, gid, flags)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		// Not root, a server that squashes it, or no such user in this user namespace. What was computed
		// is worth more than whose it is.
		if !c.kept {
			c.warn("outputs could not be given to user %d, group %d, and belong to %d, %d (%v)", uid, gid, st.Uid, st.Gid, err)
		}
		c.kept = true
		return nil
	}
	return err
}

func (c *collector) owner() (uid, gid int) {
	uid, gid = c.opts.UID, c.opts.GID
	if uid == 0 {
		uid = os.Geteuid()
	}
	if gid == 0 {
		gid = os.Getegid()
	}
	return uid, gid
}

func (p *place) close() {
	if p.dir != nil {
		p.dir.Close()
	}
	for _, d := range p.dirs {
		d.parent.Close()
	}
}

// file writes a regular file under the temporary name.
func (p *place) file(ctx context.Context, n *node) (int64, error) {
	return p.c.write(ctx, int(p.dir.Fd()), p.tmp, n, func() { p.made = true })
}

// write makes a new file that is what n is, with its mode and modification time and the outputs' owner, and
// calls made as soon as it is there.
func (c *collector) write(ctx context.Context, dir int, name string, n *node, made func()) (int64, error) {
	src, err := n.open()
	if err != nil {
		return 0, readFault(n.path, err)
	}
	defer src.Close()
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, err
	}
	made()
	dst := os.NewFile(uintptr(fd), name)
	size, err := copyFile(ctx, dst, src)
	if err == nil {
		err = c.finish(dir, fd, name, &n.stat, 0o777)
	}
	if err == nil && c.opts.Sync {
		err = dst.Sync()
	}
	return size, errors.Join(err, dst.Close())
}

// finish gives a file or directory owner, mode and modification time. The mode comes after the owner: what
// is private stays so. Both by the descriptor: whoever may write to the directory might have put a link to
// another's file in its place by now.
func (c *collector) finish(dir, fd int, name string, st *unix.Stat_t, mask uint32) error {
	if err := c.own(dir, fd, ""); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&mask); err != nil {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	return unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

func readFault(p string, err error) error {
	kind := kindOf(err)
	if kind == nil {
		return fmt.Errorf("output %s: read: %w", p, err)
	}
	return &fault{text: "output " + p + ": it cannot be read: " + reason(err), kind: kind, cause: err}
}

// publishFile gives the temporary file its name.
func (p *place) publishFile() error {
	var st unix.Stat_t
	err := unix.Fstatat(int(p.dir.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		// The link itself is replaced, but not /dev/stdout.
		if unix.Fstatat(int(p.dir.Fd()), p.name, &st, 0) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			st.Mode = unix.S_IFREG
		}
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return conflict("it is " + (&node{stat: st}).kind())
	}
	if err := unix.Renameat(int(p.dir.Fd()), p.tmp, int(p.dir.Fd()), p.name); err != nil {
		return err
	}
	return p.published()
}

func (p *place) published() error {
	p.made = false
	if p.c.opts.Sync {
		return p.dir.Sync()
	}
	return nil
}

// publishDir gives the temporary directory its name, or moves what is in it into the directory that has it.
func (p *place) publishDir() error {
	dir := int(p.dir.Fd())
	err := unix.Renameat2(dir, p.tmp, dir, p.name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// Not on this file system. Renaming a directory replaces an empty one at most.
		err = unix.Renameat(dir, p.tmp, dir, p.name)
	}
	switch {
	case err == nil:
		return p.published()
	case !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOTDIR):
		return err
	}
	if err := p.merge(); err != nil {
		return err
	}
	return p.published()
}

func (p *place) merge() error {
	src, err := unix.Openat(int(p.dir.Fd()), p.tmp, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	// The directory that the user named may be a link of his; what is in it is not followed, nor one that a task may have put there.
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if p.tree != "" {
		flags |= unix.O_NOFOLLOW
	}
	dst, err := unix.Openat(int(p.dir.Fd()), p.name, flags, 0)
	if err != nil {
		return p.why(err)
	}
	defer unix.Close(dst)
	if err := mergeDirs(src, dst, "", true); err != nil {
		return err
	}
	if err := mergeDirs(src, dst, "", false); err != nil {
		return err
	}
	return unix.Unlinkat(int(p.dir.Fd()), p.tmp, unix.AT_REMOVEDIR)
}

// why is the error for which a directory at the place could not be opened.
func (p *place) why(err error) error {
	n, bad := openNode(int(p.dir.Fd()), p.name, filepath.Join(p.dir.Name(), p.name))
	if bad != nil {
		return err
	}
	defer n.close()
	if n.isLink() && p.tree != "" {
		return notFollowed(n.path, p.tree)
	}
	return err
}

// mergeDirs moves what src holds into dst, and, with dry, only looks whether that can be done.
func mergeDirs(src, dst int, rel string, dry bool) error {
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := mergeEntry(src, dst, name, filepath.Join(rel, name), dry); err != nil {
			return err
		}
	}
	return nil
}

func mergeEntry(src, dst int, name, rel string, dry bool) error {
	var from, to unix.Stat_t
	if err := unix.Fstatat(src, name, &from, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	err := unix.Fstatat(dst, name, &to, unix.AT_SYMLINK_NOFOLLOW)
	fromDir, toDir := from.Mode&unix.S_IFMT == unix.S_IFDIR, to.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case errors.Is(err, unix.ENOENT) || err == nil && !fromDir && (&node{stat: to}).replaceable():
		if dry {
			return nil
		}
		return unix.Renameat(src, name, dst, name)
	case err != nil:
		return err
	case !fromDir || !toDir:
		return conflict(rel + " is " + (&node{stat: to}).kind() + " there")
	}
	return mergeSub(src, dst, name, rel, dry)
}

func mergeSub(src, dst int, name, rel string, dry bool) error {
	s, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	d, err := unix.Openat(dst, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	if err := mergeDirs(s, d, rel, dry); err != nil || dry {
		return err
	}
	return unix.Unlinkat(src, name, unix.AT_REMOVEDIR)
}

func readNames(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// abandon removes the temporary file or directory, and the parents that were made for it.
func (p *place) abandon() error {
	var err error
	if p.made {
		err = removeAll(filepath.Join(procPath(int(p.dir.Fd())), p.tmp))
	}
	p.made = false
	for _, d := range slices.Backward(p.dirs) {
		_ = unix.Unlinkat(int(d.parent.Fd()), d.name, unix.AT_REMOVEDIR) // unless others use it by now
	}
	return err
}

// removeAll removes a tree of ours, whatever modes its directories have.
func removeAll(p string) error {
	err := os.RemoveAll(p)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	root, rerr := os.OpenRoot(p)
	if rerr != nil {
		return err
	}
	defer root.Close()
	openDirs(root, ".")
	return os.RemoveAll(p)
}

func openDirs(root *os.Root, dir string) {
	if root.Chmod(dir, 0o700) != nil {
		return
	}
	f, err := root.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	for _, e := range entries {
		if err == nil && e.IsDir() {
			openDirs(root, strings.TrimPrefix(dir+"/"+e.Name(), "./"))
		}
	}
}
