package hook

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/inroot"
)

const driverParams = "/proc/driver/nvidia/params"

// disableDeviceNodeModification keeps the driver's libraries in the container from making device nodes: they do so
// where the driver's parameters say ModifyDeviceFiles: 1. A file that says 0 is mounted over those.
func disableDeviceNodeModification(*flag.FlagSet) func(*job) error {
	return func(j *job) error {
		params, err := os.ReadFile(driverParams)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no such driver
		} else if err != nil {
			return err
		}
		changed, ok := WithoutNodeModification(params)
		if !ok {
			return nil
		}
		return mountOver(j.root, driverParams, changed)
	}
}

// WithoutNodeModification changes the driver's parameters so that its libraries make no device nodes. It returns
// false where there is nothing to change.
func WithoutNodeModification(params []byte) ([]byte, bool) {
	const key = "ModifyDeviceFiles: "
	var out bytes.Buffer
	modified := false
	for line := range strings.Lines(string(params)) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		switch line {
		case key + "0":
			return nil, false
		case key + "1":
			line, modified = key+"0", true
		}
		out.WriteString(line + "\n")
	}
	if !modified {
		return nil, false
	}
	return out.Bytes(), true
}

// mountOver shows contents, read-only, in place of a file of the container's procfs. It leaves no file behind:
// the contents are in a tmpfs that is attached for a moment, over the directory of the file, only because the
// kernel binds nothing that was never attached.
func mountOver(root *inroot.Root, name string, contents []byte) error {
	fail := func(what string, err error) error { return fmt.Errorf("mount over %s: %s: %w", name, what, err) }
	target, err := root.Open(name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer target.Close()
	var fst unix.Statfs_t
	if err := unix.Fstatfs(int(target.Fd()), &fst); err != nil {
		return fail("statfs", err)
	}
	if fst.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("mount over %s: it is not in a procfs", name)
	}
	dir, err := root.Open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	tmpfs, err := newTmpfs(len(contents))
	if err != nil {
		return fail("tmpfs", err)
	}
	defer tmpfs.Close()
	fd, err := unix.Openat(int(tmpfs.Fd()), "file", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fail("create", err)
	}
	f := os.NewFile(uintptr(fd), "file")
	defer f.Close()
	if _, err := f.Write(contents); err != nil {
		return fail("write", err)
	}
	const empty = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(int(tmpfs.Fd()), "", int(dir.Fd()), "", empty); err != nil {
		return fail("attach", err)
	}
	defer func() { _ = unix.Unmount(inroot.ProcPath(tmpfs), unix.MNT_DETACH) }()
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fail("clone", err)
	}
	defer unix.Close(clone)
	if err := unix.MountSetattr(clone, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC,
		Propagation: unix.MS_PRIVATE,
	}); err != nil {
		return fail("make read-only", err)
	}
	if err := unix.MoveMount(clone, "", int(target.Fd()), "", empty); err != nil {
		return fail("bind", err)
	}
	return nil
}

func newTmpfs(size int) (*os.File, error) {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	err = errors.Join(
		unix.FsconfigSetString(fd, "size", fmt.Sprint(max(size, os.Getpagesize()))),
		unix.FsconfigSetString(fd, "mode", "0755"),
		unix.FsconfigCreate(fd),
	)
	if err != nil {
		return nil, err
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(mnt), "tmpfs"), nil
}
