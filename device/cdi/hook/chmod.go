package hook

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/inroot"
)

// chmod gives --mode to each --path. One that is not there is left out.
func chmod(flags *flag.FlagSet) func(*job) error {
	var paths list
	mode := flags.String("mode", "", "octal permissions")
	flags.Var(&paths, "path", "a file or directory in the container; may be given again")
	return func(j *job) error {
		m, err := strconv.ParseUint(*mode, 8, 32)
		if err != nil || m > 0o777 {
			return fmt.Errorf("--mode %q is not octal permissions, such as 755", *mode)
		}
		for _, p := range paths {
			if err := j.chmod(p, uint32(m)); err != nil {
				return err
			}
		}
		return nil
	}
}

func (j *job) chmod(path string, mode uint32) error {
	// The file itself, not what a link there leads to: that could be anything that is mounted into the
	// container.
	f, err := j.root.Open(path, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil {
		err = j.root.CheckWrite(f)
	}
	switch {
	case errors.Is(err, unix.EXDEV):
		j.warn("%v; its mode is left as it is", err)
		return nil
	case err != nil:
		return err
	case st.Mode()&fs.ModeSymlink != 0:
		j.warn("%s is a link; its mode is left as it is", path)
		return nil
	case st.Mode()&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) == fs.FileMode(mode):
		return nil
	}
	err = unix.Chmod(inroot.ProcPath(f), mode)
	if errors.Is(err, os.ErrPermission) {
		// As where the whole /dev of the host is mounted.
		j.warn("the mode of %s may not be changed", path)
		return nil
	}
	return err
}
