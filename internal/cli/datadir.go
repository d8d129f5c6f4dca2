package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// checkData says what is wrong with a data directory, before anything in it is tried, and what to do. One that is not
// there can be made where its nearest parent can be written.
func checkData(dir string) error {
	for d := dir; ; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			continue // "/" is there
		case errors.Is(err, fs.ErrPermission):
			return dataFault(dir, berth.ErrDenied, "you may not look into a directory above it")
		case err != nil:
			return dataFault(dir, fileKind(err), err.Error())
		case !st.IsDir():
			return dataFault(dir, berth.ErrInvalid, d+" is no directory")
		}
		return writable(dir, d, unix.R_OK|unix.W_OK|unix.X_OK)
	}
}

// checkTasks is checkData for commands that only look at tasks, which a database holds.
func checkTasks(dir string) error {
	err := checkData(dir)
	if err != nil {
		return err
	}
	return writable(dir, filepath.Join(dir, "berth.db"), unix.R_OK|unix.W_OK)
}

func writable(dir, file string, mode uint32) error {
	switch err := unix.Access(file, mode); {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EROFS):
		return dataFault(dir, berth.ErrDenied, "its file system is mounted read-only")
	default:
		return dataFault(dir, berth.ErrDenied, fmt.Sprintf("you may not read and write %s, which is another user's or closed to you", file))
	}
}

func dataFault(dir string, kind error, what string) error {
	return &quietError{fmt.Sprintf("data directory %s: %s; give --data-dir, or set BERTH_DATA_DIR to, a directory that you can write", dir, what), kind}
}
