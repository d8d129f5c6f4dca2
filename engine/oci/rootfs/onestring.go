package rootfs

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/berth-project/berth/engine/oci/bundle"
	"golang.org/x/sys/unix"
)

// maxOptions is how long the option string of mount(2) may be: one page with its final zero, in bytes.
const maxOptions = 4095

// overlayOneString mounts root on kernels before 6.5, whose overlay takes all layers in one string. The
// names in it are numbers of open descriptors, looked up in /proc/thread-self/fd, so that hundreds of
// layers fit. It works on a thread of its own, which is ended afterwards: the mount namespace and the
// working directory that it changes are its own.
func overlayOneString(root bundle.Root) (*os.File, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// The main thread would show its namespace as the process's own.
			rest := make(chan result)
			go func() {
				runtime.LockOSThread()
				fd, err := mountOneString(root)
				rest <- result{fd, err}
			}()
			r := <-rest
			runtime.UnlockOSThread()
			done <- r
			return
		}
		fd, err := mountOneString(root)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("mount root: %w", kind(explainUpper(root, r.err)))
	}
	return os.NewFile(uintptr(r.fd), "root"), nil
}

func mountOneString(root bundle.Root) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return -1, fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return -1, fmt.Errorf("make mounts slaves: %w", err)
	}
	var c config
	c.fs = -1
	defer c.close()
	names := make([]string, 0, len(root.Layers))
	for _, dir := range root.Layers {
		name, err := c.number(dir)
		if err != nil {
			return -1, fmt.Errorf("layer %s: %w", dir, err)
		}
		names = append(names, name)
	}
	opts := []string{"lowerdir=" + strings.Join(names, ":")}
	var place string
	if root.Upper != "" {
		upper, err := c.number(root.Upper)
		if err != nil {
			return -1, fmt.Errorf("upper directory %s: %w", root.Upper, err)
		}
		work, err := c.number(root.Work)
		if err != nil {
			return -1, fmt.Errorf("work directory %s: %w", root.Work, err)
		}
		opts = append(opts, "upperdir="+upper, "workdir="+work)
		place = root.Upper
	} else {
		place = root.Layers[0]
	}
	for _, o := range options(root) {
		if o.value == "" {
			opts = append(opts, o.key)
		} else {
			opts = append(opts, o.key+"="+o.value)
		}
	}
	data := strings.Join(opts, ",")
	if len(data) > maxOptions {
		return -1, fmt.Errorf("%d layers need %d bytes of options, and this kernel takes %d: %w", len(names), len(data), maxOptions, unix.E2BIG)
	}
	if err := unix.Chdir("/proc/thread-self/fd"); err != nil {
		return -1, err
	}
	var flags uintptr
	if root.Upper == "" {
		flags |= unix.MS_RDONLY
	}
	if root.NoDevices {
		flags |= unix.MS_NODEV
	}
	// The place is of no account: only this thread sees it, and the clone below leaves it.
	if err := unix.Mount("overlay", place, "overlay", flags, data); err != nil {
		return -1, fmt.Errorf("overlay of %d layers: %w", len(names), err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, place, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone overlay: %w", err)
	}
	if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("detach overlay: %w", err)
	}
	return fd, nil
}

// number opens the directory and returns its descriptor's number as a name.
func (c *config) number(dir string) (string, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	c.dirs = append(c.dirs, fd)
	return strconv.Itoa(fd), nil
}
