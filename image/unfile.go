package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

const (
	xattrRecord = "SCHILY.xattr."
	aclDefault  = "system.posix_acl_default"
)

// file makes a regular file with its content.
func (u *unpacker) file(ctx context.Context, at node, base string, hdr *tar.Header, data io.Reader) error {
	mode, fd := modeOf(hdr), -1
	err := u.make(at, base, "create", func() (err error) {
		fd, err = unix.Openat(at.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode&0o777)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.bytes += hdr.Size
	if isSparse(hdr) {
		err = u.copySparse(ctx, fd, data, hdr.Size)
	} else {
		err = u.copy(ctx, fd, data)
	}
	if err != nil {
		return err
	}
	if err := u.chown(fd, "", hdr); err != nil {
		return err
	}
	// A change of owner takes set-uid and set-gid away, so the mode comes after it, and capabilities after both.
	if mode&^0o777 != 0 || mode&u.umask != 0 {
		if err := unix.Fchmod(fd, mode); err != nil {
			return sysErr("chmod", err)
		}
	}
	if err := setXattrs(fd, hdr); err != nil {
		return err
	}
	times := [2]unix.Timespec{mtimeOf(hdr), mtimeOf(hdr)}
	return sysErr("set the time", unix.UtimesNanoAt(at.fd, base, times[:], unix.AT_SYMLINK_NOFOLLOW))
}

func (u *unpacker) copy(ctx context.Context, fd int, data io.Reader) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := data.Read(u.buf)
		if werr := writeAll(fd, u.buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return badArchive(err)
		}
	}
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return sysErr("write", err)
		}
		b = b[n:]
	}
	return nil
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// copySparse writes what is not zero. The size is set first, so that one that cannot be is refused at once.
func (u *unpacker) copySparse(ctx context.Context, fd int, data io.Reader, size int64) error {
	if size > sparseMax-u.sparse {
		return errArchive("it is a sparse file of %s, and those of one layer may have %s in all", berth.SizeInWords(size), berth.SizeInWords(sparseMax))
	}
	u.sparse += size
	if err := unix.Ftruncate(fd, size); err != nil {
		return sysErr("set the size", err)
	}
	zero := make([]byte, len(u.buf))
	for off := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(data, u.buf)
		if n > 0 && !bytes.Equal(u.buf[:n], zero[:n]) {
			if _, err := unix.Seek(fd, off, io.SeekStart); err != nil {
				return sysErr("seek", err)
			}
			if err := writeAll(fd, u.buf[:n]); err != nil {
				return err
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && off == size {
			return nil
		}
		if err != nil {
			return badArchive(err)
		}
	}
}

// keepXattr reports whether an extended attribute of an image is kept. Those that steer overlay are never:
// with them an image could graft other parts of its layers, and hide what they hold.
func keepXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// setXattrs sets the extended attributes of an entry, but what a directory hands on: that is set when all is in it.
func setXattrs(fd int, hdr *tar.Header) error {
	for k, v := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok || !keepXattr(name) {
			continue
		}
		if err := setXattr(fd, name, v); err != nil {
			return err
		}
	}
	return nil
}

// setXattr sets an extended attribute. What the file system or the user namespace does not take is left out.
func setXattr(fd int, name, value string) error {
	err := unix.Fsetxattr(fd, name, []byte(value), 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM):
		return nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.E2BIG):
		return errArchive("its attribute %.64q is not valid: %w", name, err)
	}
	return sysErr("set the attribute "+name, err)
}

// link makes a hard link. Where the file lies in a lower layer, the link is noted for later.
func (u *unpacker) link(ctx context.Context, at node, base string, hdr *tar.Header) error {
	name := path.Join(at.path, base)
	target, err := entryPath(hdr.Linkname)
	if err != nil || target == "" {
		return errArchive("it links to %.200q, which is no file within the root", hdr.Linkname)
	}
	own, err := unix.FcntlInt(uintptr(at.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return sysErr("dup", err)
	}
	defer unix.Close(own) // at itself may be closed when the target's directory is opened
	at.fd = own
	dir, file := path.Split(target)
	from, err := u.tree.open(ctx, strings.TrimSuffix(dir, "/"), nil)
	if errors.Is(err, unix.ENOENT) {
		return u.deferLink(at, base, target)
	}
	if err != nil {
		return err
	}
	if path.Join(from.path, file) == name {
		return nil // a link to itself
	}
	var st unix.Stat_t
	err = unix.Fstatat(from.fd, file, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return u.deferLink(at, base, path.Join(from.path, file))
	case err != nil:
		return sysErr("stat", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return errArchive("it links to %.200q, which is a directory", hdr.Linkname)
	case isWhiteout(&st):
		return errArchive("it links to %.200q, which this layer removes", hdr.Linkname)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		u.bytes += st.Size
	}
	return u.make(at, base, "link", func() error { return unix.Linkat(from.fd, file, at.fd, base, 0) })
}

// deferLink notes a link to a file that this layer does not hold, in place of what is there.
func (u *unpacker) deferLink(at node, base, target string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		if err := u.remove(at, base); err != nil {
			return err
		}
	}
	if further, ok := u.targets[target]; ok {
		target = further
	}
	l := link{Name: path.Join(at.path, base), Target: target}
	u.links = append(u.links, l)
	u.targets[l.Name] = l.Target
	return u.take(len(l.Name) + len(l.Target))
}

// whiteout removes what lower layers have at a name, or in a whole directory.
func (u *unpacker) whiteout(at node, base string) error {
	if base == whiteoutOpaque {
		if at.path == "" {
			u.opaqueRoot = true // overlay does not heed the attribute on a layer's root
			return nil
		}
		return u.opaqueDir(at.fd, ".")
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return errArchive("it is a whiteout of nothing")
	}
	err := unix.Mknodat(at.fd, name, unix.S_IFCHR, 0)
	switch {
	case err == nil:
		u.entries++
	case errors.Is(err, unix.EEXIST):
		return u.hideBelow(at, name)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: this host lets no whiteout be made: kernel 5.8 or root is needed", berth.ErrUnsupported)
	}
	return sysErr("mknod", err)
}

// hideBelow applies a whiteout to a name that this very layer has too: only what lower layers have is hidden.
func (u *unpacker) hideBelow(at node, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return sysErr("stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return u.opaqueDir(at.fd, name)
}

func (u *unpacker) opaqueDir(at int, name string) error {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return sysErr("open", err)
	}
	defer unix.Close(fd)
	return u.setOpaque(fd)
}

func (u *unpacker) setOpaque(fd int) error {
	err := unix.Fsetxattr(fd, u.opaqueAttr, []byte("y"), 0)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: the attribute %s cannot be set: the file system of the data directory lacks it", berth.ErrUnsupported, u.opaqueAttr)
	}
	return sysErr("set "+u.opaqueAttr, err)
}

// finish gives the directories their modes and times, which writing into them would have changed.
func (u *unpacker) finish(ctx context.Context) (layerRecord, error) {
	rec := layerRecord{Opaque: u.opaqueRoot, Entries: u.entries, Bytes: u.bytes}
	if u.removed {
		var err error
		if rec.Entries, rec.Bytes, err = census(u.tree.name); err != nil {
			return layerRecord{}, err
		}
	}
	paths := make([]string, 0, len(u.dirs))
	for p := range u.dirs {
		paths = append(paths, p)
	}
	sort.Sort(sort.Reverse(sort.StringSlice(paths))) // what lies in a directory comes before it
	for _, p := range paths {
		if err := u.finishDir(ctx, p, u.dirs[p]); err != nil {
			return layerRecord{}, fmt.Errorf("directory %.200q: %w", p, err)
		}
		if u.dirs[p].implied {
			rec.Implied = append(rec.Implied, p)
		}
	}
	sort.Strings(rec.Implied)
	for _, l := range u.links {
		if still, err := u.isFree(ctx, l.Name); err != nil {
			return layerRecord{}, err
		} else if still {
			rec.Links = append(rec.Links, l)
		}
	}
	return rec, nil
}

// finishDir sets mode and time of one directory. By the descriptor: a path could lead elsewhere.
func (u *unpacker) finishDir(ctx context.Context, real string, m *dirMeta) error {
	fd, err := u.openDir(ctx, real)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	times := [2]unix.Timespec{m.mtime, m.mtime}
	if err := unix.UtimesNanoAt(fd, ".", times[:], 0); err != nil {
		return sysErr("set the time", err)
	}
	if m.inherit != "" {
		if err := setXattr(fd, aclDefault, m.inherit); err != nil {
			return err
		}
	}
	return sysErr("chmod", unix.Fchmod(fd, m.mode))
}

// openDir opens a directory of this layer for reading.
func (u *unpacker) openDir(ctx context.Context, real string) (int, error) {
	dir, base := path.Split(real)
	at, err := u.tree.open(ctx, strings.TrimSuffix(dir, "/"), nil)
	if err != nil {
		return -1, err
	}
	if base == "" {
		base = "."
	}
	fd, err := unix.Openat(at.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return fd, sysErr("open", err)
}

// isFree reports whether a path is still free, in a directory of this layer: nothing that came later took
// its place, or its directory's.
func (u *unpacker) isFree(ctx context.Context, real string) (bool, error) {
	dir, base := path.Split(real)
	at, err := u.tree.open(ctx, strings.TrimSuffix(dir, "/"), nil)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, berth.ErrInvalid) {
		return false, nil
	}
	if err != nil || at.path != strings.TrimSuffix(dir, "/") {
		return false, err
	}
	var st unix.Stat_t
	err = unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	return false, sysErr("stat", err)
}

// umask reads the mask of this process, without changing it as umask(2) would.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	_, rest, ok := strings.Cut(string(b), "\nUmask:\t")
	if !ok {
		return 0o777 // then every mode is set by chmod
	}
	line, _, _ := strings.Cut(rest, "\n")
	m, err := strconv.ParseUint(line, 8, 32)
	if err != nil {
		return 0o777
	}
	return uint32(m)
}
