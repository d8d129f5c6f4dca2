package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/thread"
)

// unified is where a hybrid host has the v2 hierarchy.
const unified = "/sys/fs/cgroup/unified"

// refusesHybrid reports whether this host is a hybrid one and the runtime is one that refuses those: crun,
// which looks whether the v2 hierarchy is beside those of v1.
func refusesHybrid(name string) bool {
	var st unix.Statfs_t
	return strings.HasPrefix(name, "crun ") && unix.Statfs(unified, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// call runs f, which executes the runtime from the goroutine that it is called on. A runtime that refuses
// hybrid hosts is executed in a mount namespace of its own, where the v2 hierarchy is covered. What the container has of the thread
// that executes the runtime is as usual.
func (p *process) call(f func() error) error {
	if !p.rt.cover {
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		thread.BeOrdinary()
		return f()
	}
	return thread.Own(func() error {
		thread.BeOrdinary()
		if err := coverUnified(p.cgroup); err != nil {
			return fmt.Errorf("hide %s from %s: %w", unified, p.rt.name, err)
		}
		return f()
	})
}

// coverUnified gives this thread a mount namespace, in which another directory lies over the v2 hierarchy: the
// hierarchy cannot be unmounted in a user namespace. All that it has is what the cgroup's path begins with, so
// that the runtime, which takes it for one of v1 by name, has the container join its cgroup there.
func coverUnified(cgroup string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	first, _, _ := strings.Cut(strings.Trim(cgroup, "/"), "/")
	tree := -1
	if first != "" {
		var err error
		if tree, err = unix.OpenTree(unix.AT_FDCWD, unified+"/"+first, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return err
		}
		defer func() { _ = unix.Close(tree) }()
	}
	if err := unix.Mount("tmpfs", unified, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil || tree < 0 {
		return err
	}
	if err := unix.Mkdir(unified+"/"+first, 0o755); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, unified+"/"+first, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// denyConsole takes back what crun allows every container on v1 by itself: the host's console.
func (p *process) denyConsole() error {
	if !strings.HasPrefix(p.rt.name, "crun ") || p.cgroup == "" {
		return nil
	}
	err := os.WriteFile("/sys/fs/cgroup/devices"+p.cgroup+"/devices.deny", []byte("c 5:1 rwm"), 0)
	if errors.Is(err, fs.ErrNotExist) { // v2: the cgroup above has rules that hold for it too
		return nil
	}
	return err
}
