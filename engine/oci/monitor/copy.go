package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/berth-project/berth/scratch"
	"golang.org/x/sys/unix"
)

const (
	copyPiece = 8 << 20 // bytes copied between two looks at whether they are wanted still
	linksMost = 8 << 20 // bytes of the names of files with several names that are remembered
)

// copier copies what an image holds into a volume: links stay links, and holes stay holes, or a file of some
// bytes could fill the disk.
type copier struct {
	src, dst *os.Root
	links    map[inode]string // the first name of each file that has several
	names    int              // bytes of these
	defaults bool             // a directory has an access list for what is made in it
}

// aclDefault is the access list that what is made in a directory begins with.
const aclDefault = "system.posix_acl_default"

type inode struct{ dev, ino uint64 }

func copyImageDir(ctx context.Context, layers []string, rootless bool, p, dst string, why func(error) error) error {
	image, err := rootfs.Overlay(bundle.Root{Layers: layers, UserXattr: rootless})
	if err != nil {
		return err
	}
	defer func() { _ = image.Close() }()
	return copyDir(ctx, image, p, dst, why)
}

// copyDir copies the directory at p below root, if there is one, into the directory dst. After an error nothing
// of it is there; before that is removed, why may say more of the error.
func copyDir(ctx context.Context, root *os.File, p, dst string, why func(error) error) error {
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := rootfs.Open(int(root.Fd()), strings.TrimPrefix(p, "/"), how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	src, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	to, err := os.OpenRoot(dst)
	if err != nil {
		return err
	}
	defer func() { _ = to.Close() }()
	had, err := os.ReadDir(dst)
	if err != nil {
		return err
	}
	c := &copier{src: src, dst: to, links: map[inode]string{}}
	err = c.walk(ctx, func(name string, _ fs.DirEntry) error { return c.copy(ctx, name) })
	if err == nil && c.defaults { // what was copied was made without them
		err = c.walk(ctx, c.inherited)
	}
	if err != nil {
		return errors.Join(why(err), removeNew(dst, had))
	}
	return nil
}

// walk calls fn for all that there is to copy, directories before what is in them.
func (c *copier) walk(ctx context.Context, fn func(name string, e fs.DirEntry) error) error {
	return fs.WalkDir(c.src.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		return fn(name, e)
	})
}

// removeNew removes what is in a directory and was not before.
func removeNew(dir string, had []fs.DirEntry) error {
	old := map[string]bool{}
	for _, e := range had {
		old[e.Name()] = true
	}
	have, err := os.ReadDir(dir)
	for _, e := range have {
		if !old[e.Name()] {
			err = errors.Join(err, scratch.Remove(dir+"/"+e.Name()))
		}
	}
	return err
}

func (c *copier) copy(ctx context.Context, name string) error {
	st, err := c.src.Lstat(name)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no stat", name)
	}
	switch mode := st.Mode(); {
	case mode.IsDir():
		if name != "." {
			if err := c.dst.Mkdir(name, 0o700); err != nil {
				return err
			}
		}
	case mode&fs.ModeSymlink != 0:
		target, err := c.src.Readlink(name)
		if err != nil {
			return err
		}
		if err := c.dst.Symlink(target, name); err != nil {
			return err
		}
		return c.dst.Lchown(name, int(sys.Uid), int(sys.Gid))
	case mode.IsRegular():
		if first, ok := c.first(name, sys); ok {
			return c.dst.Link(first, name)
		}
		if err := c.file(ctx, name); err != nil {
			return err
		}
	default: // a device or a socket of an image means nothing in a volume
		return nil
	}
	if err := c.dst.Lchown(name, int(sys.Uid), int(sys.Gid)); err != nil {
		return err
	}
	err = c.dst.Chmod(name, st.Mode().Perm()|st.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
	// Last: a new owner takes a file's capabilities away, and a mode changes an access list.
	return errors.Join(err, c.attributes(name), c.dst.Chtimes(name, st.ModTime(), st.ModTime()))
}

// attributes copies what a program or a user has put on a file or directory, but access lists for what is made in it, which are
// inherited. What is of a file system or of this host's policy, as labels are, stays.
func (c *copier) attributes(name string) error {
	in, err := c.src.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	from := int(in.Fd())
	list := make([]byte, unix.PathMax*16) // XATTR_LIST_MAX
	n, err := unix.Flistxattr(from, list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil
	} else if err != nil {
		return fmt.Errorf("attributes of %s: %w", name, err)
	}
	out, err := c.dst.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		switch {
		case attr == aclDefault:
			c.defaults = true
		case carried(attr):
			if err := copyAttribute(out, in, attr); err != nil {
				return fmt.Errorf("attribute %s of %s: %w", attr, name, err)
			}
		}
	}
	return nil
}

// inherited copies the access list for what is made in a directory.
func (c *copier) inherited(name string, e fs.DirEntry) error {
	if !e.IsDir() {
		return nil
	}
	in, err := c.src.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := c.dst.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	if err := copyAttribute(out, in, aclDefault); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("attribute %s of %s: %w", aclDefault, name, err)
	}
	return nil
}

func copyAttribute(out, in *os.File, attr string) error {
	value := make([]byte, unix.PathMax*16) // XATTR_SIZE_MAX
	n, err := unix.Fgetxattr(int(in.Fd()), attr, value)
	if err == nil {
		err = unix.Fsetxattr(int(out.Fd()), attr, value[:n], 0)
	}
	// The volume's file system may have no such attributes, and an ordinary user may not give all.
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

func carried(attr string) bool {
	switch attr {
	case "security.capability", "system.posix_acl_access":
		return true
	}
	return strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay.")
}

// first is the name under which a file with several names was copied already.
func (c *copier) first(name string, st *syscall.Stat_t) (string, bool) {
	if st.Nlink < 2 {
		return "", false
	}
	id := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // its type differs between architectures
	first, ok := c.links[id]
	if !ok && c.names+len(name) <= linksMost {
		c.links[id] = name
		c.names += len(name)
	}
	return first, ok
}

func (c *copier) file(ctx context.Context, name string) error {
	in, err := c.src.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := c.dst.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := copyData(ctx, out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// copyData copies what is data in a file; holes stay holes.
func copyData(ctx context.Context, out, in *os.File) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for at, end := int64(0), int64(0); at < st.Size(); at = end {
		at, err = in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole to its end
		}
		if err == nil {
			end, err = in.Seek(at, unix.SEEK_HOLE)
		}
		if err != nil {
			return err
		}
		if err := copyRange(ctx, out, in, at, end); err != nil {
			return err
		}
	}
	return nil
}

func copyRange(ctx context.Context, out, in *os.File, at, end int64) error {
	for _, f := range []*os.File{in, out} {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	for at < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(out, in, min(end-at, copyPiece))
		if at += n; errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
