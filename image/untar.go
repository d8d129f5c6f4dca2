package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."     // bookkeeping of aufs
	whiteoutOpaque = ".wh..wh..opq" // hides what lower layers have in this directory
	tarPathMax     = 4095           // bytes; what the kernel takes
	copySize       = 256 << 10      // bytes read and written at once
	idMax          = 1<<32 - 2      // 2^32-1 means "leave as it is" to chown(2)

	// keptMax bounds the bytes that one layer takes in memory: what is kept of its directories, and of hard links
	// to files that it does not hold. It is enough for some million of them.
	keptMax = 256 << 20
	keptOne = 128 // bytes of one, beside its names

	// sparseMax bounds the size of the sparse files of one layer: a few bytes of an archive make any size, and the
	// holes, which take no disk, take time to read.
	sparseMax = 256 << 30
)

// untar unpacks one layer's archive beneath root, an empty directory that nobody else writes to, in the form
// in which overlay wants its lower layers: a whiteout becomes a character device 0/0, an opaque directory
// gets an extended attribute. Nothing outside root is touched, whatever the archive holds: every operation
// is relative to the descriptor of a directory that was reached without following a symbolic link.
func untar(ctx context.Context, r io.Reader, root *os.File, rootless bool) (layerRecord, error) {
	u := newUnpacker(root, rootless)
	defer u.tree.close()
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return layerRecord{}, badArchive(err)
		}
		if err := ctx.Err(); err != nil {
			return layerRecord{}, context.Cause(ctx)
		}
		if err := u.entry(ctx, hdr, tr); err != nil {
			return layerRecord{}, fmt.Errorf("archive entry %.200q: %w", hdr.Name, err)
		}
	}
	return u.finish(ctx)
}

// unpacker is the state of one untar.
type unpacker struct {
	tree       *tree
	rootless   bool
	buf        []byte
	umask      uint32
	uid, gid   int
	opaqueAttr string
	opaqueRoot bool
	dirs       map[string]*dirMeta // by path from the root, without symbolic links
	links      []link              // to files that are not in this layer
	targets    map[string]string   // the same, by name
	kept       int64               // bytes in memory, about
	entries    int64               // made so far
	bytes      int64               // of the regular files among them
	sparse     int64               // bytes of the sparse files among them, holes included
	removed    bool                // something was, so that entries and bytes are too many
}

func newUnpacker(root *os.File, rootless bool) *unpacker {
	u := &unpacker{
		tree: newTree(root), rootless: rootless, buf: make([]byte, copySize),
		umask: umask(), uid: os.Geteuid(), gid: os.Getegid(),
		dirs: map[string]*dirMeta{"": {mode: 0o755, mtime: unix.Timespec{}}}, targets: map[string]string{}, opaqueAttr: "trusted.overlay.opaque",
	}
	if rootless {
		u.opaqueAttr = "user.overlay.opaque"
	}
	return u
}

// dirMeta is what a directory gets once nothing is written into it any more.
type dirMeta struct {
	mode    uint32
	mtime   unix.Timespec
	implied bool   // not named by the archive
	inherit string // the access list that what is made in it would begin with
}

// errArchive makes an error of what is wrong with an archive.
func errArchive(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{berth.ErrInvalid}, args...)...)
}

// badArchive says what a failed read of the archive means: the archive's fault, unless it has a kind already.
func badArchive(err error) error {
	if hasKind(err) || isContext(err) {
		return err
	}
	return fmt.Errorf("%w: corrupt archive: %w", berth.ErrInvalid, err)
}

// entry unpacks one entry.
func (u *unpacker) entry(ctx context.Context, hdr *tar.Header, data io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := entryPath(hdr.Name)
	if err != nil {
		return err
	}
	if err := checkOwner(hdr); err != nil {
		return err
	}
	if name == "" {
		return u.rootEntry(hdr)
	}
	parent, base := path.Split(name)
	for c := range strings.SplitSeq(strings.TrimSuffix(parent, "/"), "/") {
		if strings.HasPrefix(c, whiteoutMeta) {
			return nil
		}
		if strings.HasPrefix(c, whiteoutPrefix) {
			return errArchive("%q is a whiteout and cannot hold anything", c)
		}
	}
	dir, err := u.parent(ctx, strings.TrimSuffix(parent, "/"))
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.dir(dir, base, hdr)
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // old archives have TypeRegA
		return u.file(ctx, dir, base, hdr, data)
	case tar.TypeSymlink:
		return u.symlink(dir, base, hdr)
	case tar.TypeLink:
		return u.link(ctx, dir, base, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(dir, base, hdr)
	}
	return errArchive("it is of type %q, which is unknown", hdr.Typeflag)
}

// entryPath is the path of an entry from the root: "" for the root itself. Absolute names are taken from
// the root. ErrInvalid if the name leads out of it.
func entryPath(name string) (string, error) {
	name = strings.TrimLeft(name, "/")
	if len(name) > tarPathMax {
		return "", errArchive("its name has %d bytes, and more than %d are not possible", len(name), tarPathMax)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errArchive("its name holds a zero byte")
	}
	name = path.Clean(name)
	if name == ".." || strings.HasPrefix(name, "../") {
		return "", errArchive("its name leads out of the root")
	}
	if name == "." {
		return "", nil
	}
	return name, nil
}

func checkOwner(hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Uid > idMax || hdr.Gid < 0 || hdr.Gid > idMax {
		return errArchive("its owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	return nil
}

// rootEntry takes the attributes of the root itself.
func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return errArchive("it is the root and no directory")
	}
	if err := u.keep("", metaOf(hdr)); err != nil {
		return err
	}
	if err := u.chown(u.tree.root, "", hdr); err != nil {
		return err
	}
	return setXattrs(u.tree.root, hdr)
}

// parent opens the directory of an entry and makes what is missing of it.
func (u *unpacker) parent(ctx context.Context, dir string) (node, error) {
	return u.tree.open(ctx, dir, func(at node, base string) error {
		opaque, err := u.mkdir(at, base)
		if err != nil {
			return err
		}
		if err := u.keep(path.Join(at.path, base), dirMeta{mode: 0o755, implied: !opaque}); err != nil {
			return err
		}
		if opaque {
			return u.opaqueDir(at.fd, base)
		}
		return nil
	})
}

// keep notes what a directory is to get.
func (u *unpacker) keep(real string, m dirMeta) error {
	if was := u.dirs[real]; was != nil {
		*was = m
		if m.inherit == "" {
			return nil
		}
		return u.take(len(m.inherit))
	}
	u.dirs[real] = &m
	return u.take(len(real) + len(m.inherit))
}

// metaOf is what an entry says of a directory.
func metaOf(hdr *tar.Header) dirMeta {
	return dirMeta{mode: modeOf(hdr), mtime: mtimeOf(hdr), inherit: hdr.PAXRecords[xattrRecord+aclDefault]}
}

// take counts what is kept in memory. ErrInvalid if it is too much.
func (u *unpacker) take(n int) error {
	if u.kept += int64(n) + keptOne; u.kept > keptMax {
		return errArchive("the layer has too many directories or hard links to files of other layers: %d MiB of their names, and that is the most", keptMax>>20)
	}
	return nil
}

// dir makes a directory, or gives one that is there the attributes of this entry.
func (u *unpacker) dir(at node, base string, hdr *tar.Header) error {
	real := path.Join(at.path, base)
	opaque, err := u.mkdir(at, base)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(at.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return sysErr("open", err)
	}
	defer unix.Close(fd)
	if err := u.keep(real, metaOf(hdr)); err != nil {
		return err
	}
	if err := u.chown(fd, "", hdr); err != nil {
		return err
	}
	if opaque {
		if err := u.setOpaque(fd); err != nil {
			return err
		}
	}
	return setXattrs(fd, hdr)
}

// mkdir makes a directory unless it is there, in place of whatever else is. It says whether the directory
// must hide what lower layers have: a whiteout of the same name came before it.
func (u *unpacker) mkdir(at node, base string) (opaque bool, err error) {
	err = unix.Mkdirat(at.fd, base, 0o700)
	if !errors.Is(err, unix.EEXIST) {
		u.entries++
		return false, sysErr("mkdir", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, sysErr("stat", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false, nil
	}
	if err := u.remove(at, base); err != nil {
		return false, err
	}
	return isWhiteout(&st), sysErr("mkdir", unix.Mkdirat(at.fd, base, 0o700))
}

// symlink makes a symbolic link; what it points to does not matter.
func (u *unpacker) symlink(at node, base string, hdr *tar.Header) error {
	if hdr.Linkname == "" || len(hdr.Linkname) > tarPathMax {
		return errArchive("a symbolic link cannot have %d bytes", len(hdr.Linkname))
	}
	err := u.make(at, base, "symlink", func() error { return unix.Symlinkat(hdr.Linkname, at.fd, base) })
	if err != nil {
		return err
	}
	return u.attributes(at, base, hdr)
}

// node makes a fifo or a device. A device 0/0 is how overlay writes a whiteout. Without the right to make
// devices they are left out: berth gives every container a /dev of its own.
func (u *unpacker) node(at node, base string, hdr *tar.Header) error {
	mode, dev := modeOf(hdr), uint64(0)
	switch hdr.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		if hdr.Devmajor == 0 && hdr.Devminor == 0 {
			return u.whiteout(at, whiteoutPrefix+base)
		}
		mode |= unix.S_IFCHR
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	}
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor > 0xfff || hdr.Devminor < 0 || hdr.Devminor > 0xfffff {
			return errArchive("its device number %d/%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		dev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	}
	err := u.make(at, base, "mknod", func() error { return unix.Mknodat(at.fd, base, mode, int(dev)) })
	if errors.Is(err, unix.EPERM) && hdr.Typeflag != tar.TypeFifo {
		u.entries--
		return nil
	}
	if err != nil {
		return err
	}
	if err := u.attributes(at, base, hdr); err != nil {
		return err
	}
	return sysErr("chmod", unix.Fchmodat(at.fd, base, modeOf(hdr), 0))
}

// make makes something that is no directory, in place of whatever is there.
func (u *unpacker) make(at node, base, what string, how func() error) error {
	err := how()
	if errors.Is(err, unix.EEXIST) {
		if err := u.remove(at, base); err != nil {
			return err
		}
		err = how()
	}
	u.entries++
	return sysErr(what, err)
}

// attributes sets owner and time of what has no descriptor.
func (u *unpacker) attributes(at node, base string, hdr *tar.Header) error {
	if err := u.chown(at.fd, base, hdr); err != nil {
		return err
	}
	times := [2]unix.Timespec{mtimeOf(hdr), mtimeOf(hdr)}
	return sysErr("set the time", unix.UtimesNanoAt(at.fd, base, times[:], unix.AT_SYMLINK_NOFOLLOW))
}

// chown sets the owner of base in fd, or of fd itself. What this user namespace cannot name stays root's.
func (u *unpacker) chown(fd int, base string, hdr *tar.Header) error {
	if hdr.Uid == u.uid && hdr.Gid == u.gid {
		return nil // so it was made
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if base == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.Fchownat(fd, base, hdr.Uid, hdr.Gid, flags)
	if err != nil && u.rootless && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM)) {
		return nil
	}
	return sysErr("chown", err)
}

// remove removes what is at base, a whole tree too.
func (u *unpacker) remove(at node, base string) error {
	clear(u.tree.aliases) // one of them may lead through what goes
	u.removed = true
	err := unix.Unlinkat(at.fd, base, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		return u.removeTree(path.Join(at.path, base))
	}
	return sysErr("remove", err)
}

// removeTree removes a directory of this layer and forgets what was known of it.
func (u *unpacker) removeTree(real string) error {
	dirs, err := u.dirsBelow(real)
	if err != nil {
		return err
	}
	if err := u.tree.removeTree(real); err != nil {
		return err
	}
	delete(u.dirs, real)
	for _, p := range dirs {
		delete(u.dirs, p)
	}
	return nil
}

// dirsBelow lists the directories below one of this layer. It looks at the disk: to look through all that are
// known, once for each that is removed, takes for ever where both are many.
func (u *unpacker) dirsBelow(real string) (dirs []string, err error) {
	root, err := os.OpenRoot(u.tree.name)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), real, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	return dirs, err
}

// modeOf is the permissions of an entry with set-uid, set-gid and sticky.
func modeOf(hdr *tar.Header) uint32 { return uint32(hdr.Mode) & 0o7777 }

// mtimeOf is the time of an entry; the epoch where it has none or one that cannot be.
func mtimeOf(hdr *tar.Header) unix.Timespec {
	t := hdr.ModTime
	if t.Before(time.Unix(-1<<31, 0)) || t.After(time.Unix(1<<34, 0)) {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// sysErr names a system call's error; nil stays nil.
func sysErr(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENAMETOOLONG):
		return fmt.Errorf("%w: %s: %w", berth.ErrInvalid, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
