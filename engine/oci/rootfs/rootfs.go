// Package rootfs makes the root file system of a container: a detached overlay mount of image layers.
// It does not unpack images, and it mounts nothing anywhere by itself: whoever starts the container moves
// the mount to its place.
package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"golang.org/x/sys/unix"
)

// maxValue is the length at which a value of fsconfig(2) ends, in bytes.
const maxValue = 255

// maxLayers is how many lower directories the kernel's overlay takes (OVL_MAX_STACK).
const maxLayers = 500

// Overlay mounts root and returns the mount, attached nowhere, as an O_PATH descriptor; it lives until the
// descriptor and everything that it was moved or cloned to is gone. A root of one layer without an upper
// directory is a read-only bind mount of that layer, and no overlay.
//
// Layers are given to the kernel one by one (lowerdir+, Linux 6.5). Older kernels get one string of short
// names through mount(2) in a mount namespace of its own. The caller must be root of its user namespace;
// in one that is not the first, UserXattr must be set.
//
// Errors: ErrInvalid (no layers, too many), ErrNotFound (a directory is not there), ErrUnsupported (no
// overlay file system, or one that cannot hold Upper).
func Overlay(root bundle.Root) (*os.File, error) {
	switch {
	case len(root.Layers) == 0:
		return nil, fmt.Errorf("mount root: %w: no layers", berth.ErrInvalid)
	case len(root.Layers) > maxLayers:
		return nil, fmt.Errorf("mount root: %w: %d layers; the kernel takes %d", berth.ErrInvalid, len(root.Layers), maxLayers)
	case len(root.Layers) == 1 && root.Upper == "":
		return readOnly(root)
	}
	if oneString() {
		return overlayOneString(root)
	}
	fd, err := overlay(root)
	if err != nil {
		return nil, fmt.Errorf("mount root: %w", kind(explainUpper(root, err)))
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// Attach moves the mount to dir, in the caller's mount namespace. A descriptor that is attached already is
// cloned instead.
func Attach(mount *os.File, dir string) error {
	err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) {
		clone, cerr := unix.OpenTree(int(mount.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if cerr == nil {
			defer func() { _ = unix.Close(clone) }()
			err = unix.MoveMount(clone, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
	}
	if err != nil {
		return fmt.Errorf("attach root to %s: %w", dir, err)
	}
	return nil
}

// oneString reports whether the kernel's overlay takes all layers in one string only. Such a kernel does not
// parse options before the mount is made: it accepts whatever it is told.
var oneString = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false // and overlay says why
	}
	defer func() { _ = unix.Close(fs) }()
	return unix.FsconfigSetFlag(fs, "no-such-option") == nil
})

func readOnly(root bundle.Root) (*os.File, error) {
	dir := root.Layers[0]
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount root %s: %w", dir, kind(err))
	}
	attr := unix.MountAttr{Attr_set: uint64(attributes(root)), Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("mount root %s: set attributes: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// OverlayRemedy is what to do where the kernel has no overlay file system.
const OverlayRemedy = "load it as root (modprobe overlay), or use a kernel built with CONFIG_OVERLAY_FS"

// HasOverlay looks whether the kernel has the overlay file system; where it is a module that can be loaded, the look
// loads it. The error is berth.ErrUnsupported and names the remedy.
func HasOverlay() error {
	raw, err := os.ReadFile("/proc/filesystems")
	if err == nil && strings.Contains(string(raw), "\toverlay\n") {
		return nil
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return noOverlay(err)
	}
	return unix.Close(fs)
}

// noOverlay explains the error of fsopen(2).
func noOverlay(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("overlay file system: %w by this kernel: %s", berth.ErrUnsupported, OverlayRemedy)
	}
	return fmt.Errorf("overlay file system: %w", err)
}

func overlay(root bundle.Root) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, noOverlay(err)
	}
	c := config{fs: fs}
	defer c.close()
	for _, dir := range root.Layers {
		if err := c.dir("lowerdir+", dir); err != nil {
			return -1, fmt.Errorf("layer %s: %w", dir, c.explain(err))
		}
	}
	if root.Upper != "" {
		if err := c.dir("upperdir", root.Upper); err != nil {
			return -1, fmt.Errorf("upper directory %s: %w", root.Upper, c.explain(err))
		}
		if err := c.dir("workdir", root.Work); err != nil {
			return -1, fmt.Errorf("work directory %s: %w", root.Work, c.explain(err))
		}
	}
	if err := unix.FsconfigSetString(fs, "source", "overlay"); err != nil {
		return -1, c.explain(err)
	}
	for _, o := range options(root) {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return -1, fmt.Errorf("overlay option %s: %w", o.key, c.explain(err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("overlay of %d layers: %w", len(root.Layers), c.explain(err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes(root))
	if err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	return fd, nil
}

// attributes are those of the mount, as fsmount(2) takes them.
func attributes(root bundle.Root) (attr int) {
	if root.Upper == "" {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	if root.NoDevices {
		attr |= unix.MOUNT_ATTR_NODEV
	}
	return attr
}

type option struct{ key, value string }

// options are the overlay's options beside its directories. Redirects and metadata-only copies are neither
// made nor followed: a layer that claims them could name files of other layers' directories.
func options(root bundle.Root) []option {
	o := []option{{"index", "off"}, {"metacopy", "off"}}
	if root.UserXattr {
		// userxattr implies that redirects are not followed, and refuses to be told so.
		o = append(o, option{"userxattr", ""})
	} else {
		o = append(o, option{"redirect_dir", "nofollow"})
	}
	if root.Volatile && root.Upper != "" {
		o = append(o, option{"volatile", ""})
	}
	return o
}

// config is an fsopen(2) context with the descriptors that its values name.
type config struct {
	fs   int
	dirs []int
}

func (c *config) close() {
	_ = unix.Close(c.fs)
	for _, fd := range c.dirs {
		_ = unix.Close(fd)
	}
}

// dir sets key to the directory: by its path, or by a descriptor's where the path is too long or holds what
// the kernel would take for an escape.
func (c *config) dir(key, path string) error {
	if len(path) > maxValue || strings.Contains(path, `\`) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.dirs = append(c.dirs, fd)
		path = "/proc/self/fd/" + strconv.Itoa(fd)
	}
	return unix.FsconfigSetString(c.fs, key, path)
}

// explain adds the kernel's own words, which it leaves in the context.
func (c *config) explain(err error) error {
	buf := make([]byte, 512)
	n, rerr := unix.Read(c.fs, buf)
	if rerr != nil || n <= 2 {
		return err
	}
	if buf[n-1] == '\n' {
		n--
	}
	return fmt.Errorf("%w (%s)", err, buf[2:n])
}

// kind adds berth's kind to an error of the kernel.
func kind(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %w", berth.ErrNotFound, err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %w", berth.ErrUnsupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", berth.ErrDenied, err)
	default:
		return err
	}
}
