// Package inroot opens, reads and changes files beneath a directory as a process would see them whose root that
// directory is: symbolic links, absolute ones and those with "..", lead back into it. The kernel resolves the
// whole path in one step (openat2), so nobody who changes the tree meanwhile can lead a caller out of it.
//
// It is not os.Root, which refuses the absolute links that container images and recorded hosts are full of.
package inroot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a directory that stands for "/". Names are taken relative to it, with or without a slash before.
type Root struct {
	dir   *os.File
	keep  bool     // see KeepToMount
	also  []string // see KeepToMount
	alone bool     // see Alone

	watched, strayed bool // see Watch
}

// ErrLarge says that a file or directory is larger than the caller would read.
var ErrLarge = errors.New("too large")

// Open opens a root. Linux before 5.6 has no openat2: every use then fails and says so.
func Open(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), dir)}, nil
}

// At makes a root of a directory that is open. Closing it leaves dir open.
func At(dir *os.File) (*Root, error) {
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir.Name(), Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), dir.Name())}, nil
}

// Watch has Strayed tell of what is opened from now on.
func (r *Root) Watch() { r.watched, r.strayed = true, false }

// Strayed says whether something was looked for since Watch that may be another at another time, though the root's own
// file system and the files that are mounted in it be the same: it lies in a directory that is mounted there, or the way
// to it leads through one.
func (r *Root) Strayed() bool { return r.strayed }

// KeepToMount has everything that writes refuse directories of other mounts than the root's own, which may be
// those of the host: links in the tree could lead there. The mounts at the directories also are allowed, where
// they are not what this process has at the same place.
func (r *Root) KeepToMount(also ...string) { r.keep, r.also = true, also }

// Alone says that nobody else looks at the root's own file system yet: a new file there, in whose place nothing is, is
// written there at once. What is mounted beneath may be shared with others.
func (r *Root) Alone() { r.alone = true }

// Close releases the root.
func (r *Root) Close() error { return r.dir.Close() }

// Name is the directory that was opened.
func (r *Root) Name() string { return r.dir.Name() }

// Open opens a file or directory for what flags (unix.O_…) say. It never blocks in the open.
func (r *Root) Open(name string, flags int) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH != 0 {
		how.Flags = uint64(flags | unix.O_CLOEXEC)
	}
	for tries := 0; ; tries++ {
		fd, err := r.open(clean(name), how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path.Join(r.Name(), clean(name))), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN) && tries < 128: // something was renamed meanwhile
		case errors.Is(err, unix.ENOSYS):
			return nil, fmt.Errorf("open %s: this kernel has no openat2; Linux 5.6 or newer is needed", name)
		default:
			return nil, &fs.PathError{Op: "open", Path: path.Join(r.Name(), clean(name)), Err: err}
		}
	}
}

// open is one try of Open.
func (r *Root) open(name string, how *unix.OpenHow) (int, error) {
	top := int(r.dir.Fd())
	if !r.watched || r.strayed {
		return unix.Openat2(top, name, how)
	}
	// Most of what is looked for lies in the root's own file system: that, and whether it does, takes one walk.
	within := *how
	within.Resolve |= unix.RESOLVE_NO_XDEV
	fd, err := unix.Openat2(top, name, &within)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return fd, err
	}
	fd, err = unix.Openat2(top, name, how)
	// To a directory that is there, the way leads through a mount.
	r.strayed = err == nil && how.Flags&unix.O_DIRECTORY != 0 || r.strays(name, how.Flags&unix.O_NOFOLLOW, 0)
	return fd, err
}

// Stat looks at a file, following links.
func (r *Root) Stat(name string) (unix.Stat_t, error) { return r.stat(name, unix.O_PATH) }

// Lstat looks at a file, or at the link itself.
func (r *Root) Lstat(name string) (unix.Stat_t, error) {
	return r.stat(name, unix.O_PATH|unix.O_NOFOLLOW)
}

func (r *Root) stat(name string, flags int) (st unix.Stat_t, err error) {
	f, err := r.Open(name, flags)
	if err != nil {
		return st, err
	}
	defer f.Close()
	return st, unix.Fstat(int(f.Fd()), &st)
}

// ReadFile reads a regular file of at most limit bytes.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.OpenRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("read %s: %w: it has more than %d bytes", f.Name(), ErrLarge, limit)
	}
	return data, err
}

// OpenRegular opens a regular file to read it; anything else, a pipe or a device, is an error. It looks before it
// opens: to open a device may do something.
func (r *Root) OpenRegular(name string) (*os.File, error) {
	f, err := r.Open(name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", f.Name())
	}
	fd, err := unix.Open(procPath(f), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// ReadDir lists a directory, sorted by name.
func (r *Root) ReadDir(name string) ([]fs.DirEntry, error) {
	f, err := r.Open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return os.ReadDir(procPath(f))
}

// ReadSome lists a directory of at most so many entries, sorted by name. One that has more is an error.
func (r *Root) ReadSome(name string, most int) ([]fs.DirEntry, error) {
	f, err := r.Open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	again := os.NewFile(uintptr(fd), procPath(f)) // by this name, the entries' own are looked up beneath f
	defer again.Close()
	entries, err := again.ReadDir(most + 1)
	switch {
	case len(entries) > most:
		return nil, fmt.Errorf("read %s: %w: it has more than %d entries", f.Name(), ErrLarge, most)
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// Resolve says where a file really is: its path beneath the root, without links.
func (r *Root) Resolve(name string) (string, error) {
	f, err := r.Open(name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer f.Close()
	real, err := os.Readlink(procPath(f))
	if err != nil {
		return "", err
	}
	top, err := os.Readlink(procPath(r.dir))
	if err != nil {
		return "", err
	}
	if real == top {
		return "/", nil
	}
	rel, ok := strings.CutPrefix(real, strings.TrimSuffix(top, "/")+"/")
	if !ok {
		return "", fmt.Errorf("resolve %s: %s is not beneath %s", name, real, top)
	}
	return "/" + rel, nil
}

// OwnMount says whether a directory is in the file system mounted at the root itself, not in another that is
// mounted beneath. False where that cannot be found out.
func (r *Root) OwnMount(name string) bool {
	f, err := r.Open(name, unix.O_PATH)
	if err != nil {
		return false
	}
	defer f.Close()
	same, err := sameMount(f, r.dir)
	return err == nil && same
}

// sameMount says whether two files are in one mount.
func sameMount(f, g *os.File) (bool, error) {
	var a, b unix.Statx_t
	const mask = unix.STATX_MNT_ID
	err := errors.Join(
		unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, mask, &a),
		unix.Statx(int(g.Fd()), "", unix.AT_EMPTY_PATH, mask, &b),
	)
	if err == nil && a.Mask&b.Mask&mask == 0 {
		err = errors.New("this kernel does not tell mounts apart; Linux 5.8 or newer is needed")
	}
	return err == nil && a.Mnt_id == b.Mnt_id, err
}

// CheckWrite refuses a file or directory where nothing may be written: see KeepToMount. The error wraps
// unix.EXDEV.
func (r *Root) CheckWrite(f *os.File) error {
	if !r.keep {
		return nil
	}
	same, err := sameMount(f, r.dir)
	if err != nil || same {
		return err
	}
	for _, name := range r.also {
		if ok, err := r.ownAt(f, name); ok || err != nil {
			return err
		}
	}
	real, err := os.Readlink(procPath(f))
	if err != nil {
		real = f.Name()
	}
	return &fs.PathError{Op: "write", Path: real, Err: fmt.Errorf("it lies in another file system that is mounted in the container, which may be the host's: nothing is written there: %w", unix.EXDEV)}
}

// ownAt says whether f is in the mount at the directory name, and that is another file system than this
// process has there.
func (r *Root) ownAt(f *os.File, name string) (bool, error) {
	// A link of the image's there could lead to any mount.
	at, err := r.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer at.Close()
	if same, err := sameMount(f, at); err != nil || !same {
		return false, err
	}
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(int(at.Fd()), &theirs); err != nil {
		return false, err
	}
	err = unix.Stat(name, &ours)
	return err != nil || theirs.Dev != ours.Dev, nil
}

// Readlink reads a link.
func (r *Root) Readlink(name string) (string, error) {
	f, err := r.Open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	return string(buf[:n]), nil
}

// MkdirAll makes a directory and those above it, and opens it. A link that leads nowhere is an error.
func (r *Root) MkdirAll(name string, perm uint32) (*os.File, error) {
	at, err := r.Open(name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, fs.ErrNotExist) {
		return at, err
	}
	at, err = r.Open("/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(clean(name), "/")
	for i, part := range parts {
		if part == "." {
			continue
		}
		so := path.Join(parts[:i+1]...)
		next, err := r.Open(so, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, fs.ErrNotExist) {
			if err := r.CheckWrite(at); err != nil {
				at.Close()
				return nil, err
			}
			if err := unix.Mkdirat(int(at.Fd()), part, perm); err != nil && !errors.Is(err, unix.EEXIST) {
				at.Close()
				return nil, &fs.PathError{Op: "mkdir", Path: path.Join(r.Name(), so), Err: err}
			}
			next, err = r.Open(so, unix.O_PATH|unix.O_DIRECTORY)
		}
		at.Close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// WriteFile puts a file in its place by rename: whoever reads sees the old one or the new one, and what is
// there, a link too, is replaced and never written through. See Alone for what may be seen half. What is mounted
// there is left: the error wraps unix.EBUSY.
func (r *Root) WriteFile(name string, data []byte, perm uint32) error {
	return r.replace(name, false, func(dir int, tmp string) error {
		fd, err := unix.Openat(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), tmp)
		_, err = f.Write(data)
		if err = errors.Join(err, ensureMode(fd, perm), f.Close()); err != nil {
			_ = unix.Unlinkat(dir, tmp, 0)
		}
		return err
	})
}

// ensureMode gives a file the mode that it was to be made with, if the mask of who runs us or its directory has made it
// another.
func ensureMode(fd int, perm uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&0o7777 == perm {
		return err
	}
	return unix.Fchmod(fd, perm)
}

// maxLinks is how many links to files that are mounted are followed, as in the kernel.
const maxLinks = 40

// strays is Strayed for one open. The kernel says whether any part of the way lies in another mount, also where it leads
// back, or ends at what is missing.
func (r *Root) strays(name string, noFollow uint64, links int) bool {
	top := int(r.dir.Fd())
	fd, err := lookBelow(top, name, noFollow, unix.RESOLVE_NO_XDEV)
	switch {
	case err == nil:
		_ = unix.Close(fd)
		return false
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false
	case !errors.Is(err, unix.EXDEV), name == ".", links > maxLinks:
		return true
	}
	// A regular file that is mounted, or a link to one, does not stray if that is all that is mounted on the way.
	at := path.Dir(name)
	dir, err := lookBelow(top, at, 0, unix.RESOLVE_NO_XDEV)
	if err != nil {
		return true
	}
	defer func() { _ = unix.Close(dir) }()
	last, err := lookBelow(dir, path.Base(name), unix.O_NOFOLLOW, 0)
	if err != nil {
		return true
	}
	defer func() { _ = unix.Close(last) }()
	var it unix.Statx_t
	if err := unix.Statx(last, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &it); err != nil {
		return true
	}
	switch it.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return it.Attributes_mask&it.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(last, "", buf)
		text := string(buf[:max(n, 0)])
		if err != nil || noFollow != 0 || slices.Contains(strings.Split(text, "/"), "..") {
			return true // too hard to tell
		}
		if !path.IsAbs(text) {
			text = path.Join(at, text)
		}
		return r.strays(clean(text), 0, links+1)
	}
	return true
}

// lookBelow is one plain look at what is beneath a directory that stands for "/".
func lookBelow(dir int, name string, flags, resolve uint64) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	})
}

// Symlink makes a link, in place of what is there but a mount, as WriteFile does. The target is not looked at.
func (r *Root) Symlink(target, name string) error {
	return r.replace(name, true, func(dir int, tmp string) error { return unix.Symlinkat(target, dir, tmp) })
}

// replace makes something under another name and renames it; whole says that it is so from the beginning, and needs
// that only where something is there.
func (r *Root) replace(name string, whole bool, make func(dir int, tmp string) error) error {
	name = clean(name)
	fail := func(err error) error { return &fs.PathError{Op: "write", Path: path.Join(r.Name(), name), Err: err} }
	if name == "." {
		return fail(unix.EISDIR)
	}
	dir, err := r.MkdirAll(path.Dir(name), 0o755)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := r.CheckWrite(dir); err != nil {
		return err
	}
	fd, base, tmp := int(dir.Fd()), path.Base(name), ".berth-"+rand.Text()
	if !whole && r.alone {
		own, err := sameMount(dir, r.dir)
		whole = own && err == nil
	}
	if whole {
		if err := make(fd, base); !errors.Is(err, fs.ErrExist) {
			if err != nil {
				return fail(err)
			}
			return nil
		}
	}
	if err := notMounted(fd, base); err != nil {
		return fail(err)
	}
	if err = make(fd, tmp); err == nil {
		err = unix.Renameat(fd, tmp, fd, base)
	}
	if err != nil {
		_ = unix.Unlinkat(fd, tmp, 0)
		return fail(err)
	}
	return nil
}

// notMounted is an error where something is mounted at a name in a directory, or may be. The kernel refuses to rename over it only in
// this process's mount namespace; in others, as those of containers are, it takes the mount away and says nothing.
func notMounted(dir int, name string) error {
	fd, err := lookBelow(dir, name, unix.O_NOFOLLOW, unix.RESOLVE_NO_XDEV)
	switch {
	case err == nil:
		_ = unix.Close(fd)
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("something is mounted there, which would be lost: %w", unix.EBUSY)
	case !errors.Is(err, unix.ENOENT):
		return fmt.Errorf("is something mounted there? %w", err)
	}
	return nil
}

// clean makes a name relative: "" and "/" are ".".
func clean(name string) string {
	return path.Join(".", strings.TrimPrefix(path.Clean("/"+name), "/"))
}

// procPath names an open file for system calls that take paths.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// ProcPath names an open file for system calls that take paths only, such as mount.
func ProcPath(f *os.File) string { return procPath(f) }
