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
}

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
	fd, err := unix.Openat2(int(root.Fd()), strings.TrimPrefix(p, "/"), how)
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
	err = fs.WalkDir(src.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		return c.copy(ctx, name)
	})
	if err != nil {
		return errors.Join(why(err), removeNew(dst, had))
	}
	return nil
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
	return errors.Join(c.dst.Chmod(name, st.Mode().Perm()|st.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)), c.dst.Chtimes(name, st.ModTime(), st.ModTime()))
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
