package docker

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// archiveOf writes a file or directory of this machine as an archive in which it has a name: with owners, modes and times,
// as it would be seen where it is bound. A link at its very path is followed. What is neither a file, a directory nor a link
// is left out.
func archiveOf(w io.Writer, source, name string) error {
	source, err := filepath.EvalSymlinks(source)
	if err != nil {
		return fmt.Errorf("%w: %w", kindOfFile(err), err)
	}
	tw := tar.NewWriter(w)
	err = filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%w: %w", kindOfFile(err), err)
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		return archiveOne(tw, p, path.Join(name, rel), d)
	})
	return errors.Join(err, tw.Close())
}

func archiveOne(tw *tar.Writer, p, name string, d fs.DirEntry) error {
	st, err := d.Info()
	if err != nil {
		return fmt.Errorf("%w: %w", kindOfFile(err), err)
	}
	link := ""
	switch {
	case d.Type()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(p); err != nil {
			return fmt.Errorf("%w: %w", kindOfFile(err), err)
		}
	case !st.Mode().IsRegular() && !st.IsDir():
		return nil
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	if st.IsDir() {
		h.Name += "/"
	}
	if !st.Mode().IsRegular() {
		return tw.WriteHeader(h)
	}
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", kindOfFile(err), err)
	}
	defer func() { _ = f.Close() }()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(tw, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s: %w: it became shorter while it was copied", p, berth.ErrConflict)
	}
	return err
}

// archiveFile writes an archive with one file of this machine, as somebody's.
func archiveFile(w io.Writer, file, name string, uid, gid int) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%w: %w", kindOfFile(err), err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Uid: uid, Gid: gid, Size: st.Size(), ModTime: st.ModTime(), Format: tar.FormatPAX}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(tw, f); err != nil {
		return err
	}
	return tw.Close()
}

// archiveDir writes an archive with a directory alone.
func archiveDir(w io.Writer, name string, mode fs.FileMode) error {
	tw := tar.NewWriter(w)
	h := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(mode.Perm())}
	if mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	return errors.Join(tw.WriteHeader(h), tw.Close())
}
