package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"golang.org/x/sys/unix"
)

// archive streams the file or directory at p below root as a tar whose names begin with p's base name. All
// names are resolved below root, as in the container.
func archive(root *os.File, p string) (io.ReadCloser, error) {
	defer func() { _ = root.Close() }()
	clean := path.Clean("/" + p)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	dir := strings.TrimPrefix(path.Dir(clean), "/")
	if dir == "" {
		dir = "."
	}
	fd, err := rootfs.Open(int(root.Fd()), dir, how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%s in the container: %w", p, berth.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("%s in the container: %w", p, err)
	}
	parent, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	_ = unix.Close(fd)
	if err != nil {
		return nil, err
	}
	base := path.Base(clean)
	if base == "/" {
		base = "."
	}
	if _, err := parent.Lstat(base); err != nil {
		_ = parent.Close()
		if errors.Is(err, fs.ErrNotExist) {
			err = berth.ErrNotFound
		}
		return nil, fmt.Errorf("%s in the container: %w", p, err)
	}
	r, w := io.Pipe()
	go func() { // ends when all is read, or the reader is closed
		defer func() { _ = parent.Close() }()
		_ = w.CloseWithError(writeTar(w, parent, base))
	}()
	return r, nil
}

func writeTar(w io.Writer, root *os.Root, base string) error {
	tw := tar.NewWriter(w)
	st, err := root.Lstat(base)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		if err := writeEntry(tw, root, base); err != nil {
			return err
		}
		return tw.Close()
	}
	err = fs.WalkDir(root.FS(), base, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return writeEntry(tw, root, name)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// writeEntry writes one entry. It holds it by a descriptor from the first look on: what a running container puts
// in its place, a pipe without a writer or a device, must not be opened for a file.
func writeEntry(tw *tar.Writer, root *os.Root, name string) error {
	held, err := root.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = held.Close() }()
	return writeHeld(tw, held, name)
}

// writeHeld writes the entry that held, an O_PATH descriptor, stands for.
func writeHeld(tw *tar.Writer, held *os.File, name string) error {
	st, err := held.Stat()
	if err != nil {
		return err
	}
	link := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(held.Fd()), "", buf)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		link = string(buf[:n])
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return nil // tar knows no sockets
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name = name
	if st.IsDir() {
		h.Name += "/"
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		h.Uid, h.Gid, h.Uname, h.Gname = int(sys.Uid), int(sys.Gid), "", ""
	}
	if err := tw.WriteHeader(h); err != nil || !st.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", held.Fd()))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.CopyN(tw, f, h.Size)
	return err
}
