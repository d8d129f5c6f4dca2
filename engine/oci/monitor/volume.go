package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// within returns what is left of p below dir: "." where they are the same.
func within(dir, p string) (string, bool) {
	dir, p = path.Clean(dir), path.Clean(p)
	if dir == p {
		return ".", true
	}
	if dir != "/" {
		dir += "/"
	}
	return strings.CutPrefix(p, dir)
}

// createInVolume makes the file at a container path, which must lie in a volume, for the container's user.
func (sb *sandbox) createInVolume(p string, user specs.User) (*os.File, error) {
	best, rel := "", ""
	for _, v := range sb.rec.Spec.Volumes {
		if r, ok := within(v.Path, p); ok && r != "." && len(v.Path) > len(best) {
			best, rel = v.Path, r
		}
	}
	if best == "" {
		return nil, fmt.Errorf("%s: %w: the file of a step's stream must lie in a volume", p, berth.ErrInvalid)
	}
	dir, err := sb.volume(best)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	tree, err := cloneWith(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	defer func() { _ = unix.Close(tree) }()
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", tree))
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	if err := root.MkdirAll(filepath.Dir(rel), 0o777); err != nil {
		return nil, fmt.Errorf("directory of %s: %w", p, err)
	}
	f, err := root.OpenFile(rel, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w: it is there and no regular file", p, berth.ErrInvalid)
	}
	_ = f.Chown(int(user.UID), int(user.GID)) // a convenience: rootless, the id may be outside the map
	return f, nil
}

// openForStdin opens a file of the container by its container path, in such a way that it cannot be opened
// for writing through the descriptor: by a read-only clone of the mount that holds it.
func (l *launch) openForStdin(p string) (*os.File, error) {
	src, rel := "", strings.TrimPrefix(path.Clean(p), "/")
	mount := "/"
	for _, m := range l.spec.Mounts {
		if r, ok := within(m.Destination, p); ok && m.Type == "bind" && len(m.Destination) >= len(mount) {
			mount, src, rel = m.Destination, m.Source, r
		}
	}
	tree, err := l.readOnlyTree(src)
	if err != nil {
		return nil, fmt.Errorf("stdin %s: %w", p, err)
	}
	defer func() { _ = unix.Close(tree) }()
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	var fd int
	if rel == "." {
		// The mount is the file itself. Opened by its own name in /proc, which leads through the clone.
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", tree), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	} else {
		fd, err = rootfs.Open(tree, rel, how)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("stdin %s: %w in the container", p, berth.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("stdin %s: %w", p, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("stdin %s: %w: it is no regular file", p, berth.ErrInvalid)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

// readOnlyTree is a detached read-only clone of the mount at src; of the image where src is "".
func (l *launch) readOnlyTree(src string) (int, error) {
	if src == "" {
		f, err := rootfs.Overlay(bundle.Root{Layers: l.req.Layers, UserXattr: l.c.sb.m.rootless})
		if err != nil {
			return -1, err
		}
		defer func() { _ = f.Close() }()
		return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	}
	return cloneWith(src, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV)
}

// cloneWith is a detached clone of the mount at src with further attributes. Through one with NODEV no device
// can be opened that a container has made: to open a device, even to find out that it is one, may do something.
func cloneWith(src string, attrs uint64) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, src, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs}); err != nil {
		_ = unix.Close(tree)
		return -1, err
	}
	return tree, nil
}

// copyUp fills the sandbox's empty volumes with what the first step's image holds in their places. Another step
// that starts meanwhile waits; nobody else does.
func (l *launch) copyUp(ctx context.Context) error {
	sb := l.c.sb
	sb.copying.Lock()
	defer sb.copying.Unlock()
	var image *os.File
	for i, v := range sb.rec.Spec.Volumes {
		if !v.CopyUp || sb.isCopied(v.Path) {
			continue
		}
		if image == nil {
			f, err := rootfs.Overlay(bundle.Root{Layers: l.req.Layers, UserXattr: sb.m.rootless})
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			image = f
		}
		if err := copyDir(ctx, image, v.Path, sb.volumes[i], sb.whyFull); err != nil {
			return fmt.Errorf("copy %s of the image into its volume: %w", v.Path, err)
		}
		if err := sb.setCopied(v.Path); err != nil {
			return err
		}
	}
	return nil
}

// copies reports whether copyUp or imageVolumes may have something to do.
func (l *launch) copies() bool {
	return len(l.c.step.Image.Config.Volumes) > 0 || slices.ContainsFunc(l.c.sb.rec.Spec.Volumes, func(v berth.Volume) bool { return v.CopyUp && !l.c.sb.isCopied(v.Path) })
}

func (sb *sandbox) isCopied(volume string) bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return slices.Contains(sb.rec.Copied, volume)
}

func (sb *sandbox) setCopied(volume string) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.rec.Copied = append(sb.rec.Copied, volume)
	return sb.save()
}

// imageVolumes gives the container a directory of its own for each volume that its image declares and that
// nothing else is mounted on, filled with what the image has there, as Docker does. It can be written even
// where the root cannot.
func (l *launch) imageVolumes(ctx context.Context) error {
	c := l.c
	for i, p := range c.step.Image.Config.Volumes {
		p = path.Clean("/" + p)
		taken := slices.ContainsFunc(l.spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == p })
		if taken || p == "/" {
			continue
		}
		if strings.HasPrefix(p, "/proc/") {
			return fmt.Errorf("volume %s of the image: %w: nothing can be put below /proc", p, berth.ErrInvalid)
		}
		dir := c.imageVolume(i)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := copyImageDir(ctx, l.req.Layers, c.sb.m.rootless, p, dir, c.sb.whyFull); err != nil {
			return fmt.Errorf("volume %s of the image: %w", p, err)
		}
		m := specs.Mount{Destination: p, Type: "bind", Source: dir, Options: []string{"rbind", "rprivate", "nosuid", "nodev"}}
		at := slices.IndexFunc(l.spec.Mounts, func(o specs.Mount) bool {
			_, below := within(p, o.Destination)
			return below
		})
		if at < 0 {
			at = len(l.spec.Mounts)
		}
		l.spec.Mounts = slices.Insert(l.spec.Mounts, at, m)
	}
	return nil
}

func (c *container) imageVolume(i int) string {
	return filepath.Join(c.sb.area.Dir(), fmt.Sprintf("image-volume-%s-%d", c.id, i))
}
