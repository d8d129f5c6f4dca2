package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// openRegular opens a file of a volume that is a regular one. To open what else a container may have made there, a device of
// this machine, say, could do something or have no end. With O_CREATE it makes one that is not there.
func openRegular(root *os.Root, name string, flag int) (*os.File, error) {
	for range linksMax {
		if flag&os.O_CREATE != 0 {
			f, err := root.OpenFile(name, flag|os.O_EXCL, 0o644)
			if err == nil || !errors.Is(err, fs.ErrExist) {
				return f, withKind(err)
			}
		}
		if to, err := root.Readlink(name); err == nil {
			if path.IsAbs(to) {
				return nil, fmt.Errorf("%s: %w: it is a link out of the volume", name, berth.ErrInvalid)
			}
			name = path.Join(path.Dir(name), to)
			continue
		}
		found, err := root.OpenFile(name, unix.O_PATH, 0)
		if err != nil {
			return nil, withKind(err)
		}
		f, err := reopen(found, flag&^os.O_CREATE)
		_ = found.Close()
		return f, err
	}
	return nil, fmt.Errorf("%s: %w: too many symbolic links", name, berth.ErrInvalid)
}

// reopen opens what was found. By name it could be something else meanwhile.
func reopen(found *os.File, flag int) (*os.File, error) {
	st, err := found.Stat()
	if err != nil {
		return nil, withKind(err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: it is there and no regular file", path.Base(found.Name()), berth.ErrInvalid)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", found.Fd()), flag|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, withKind(&fs.PathError{Op: "open", Path: found.Name(), Err: err})
	}
	return os.NewFile(uintptr(fd), found.Name()), nil
}

func withKind(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", kindOfFile(err), err)
}
