package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

const (
	blockSize   = 4096 // of the file systems made here, bytes
	inodeSize   = 256  // bytes
	loopMajor   = 7
	loopTries   = 64    // other processes take free loop devices too
	groupSize   = 32768 // blocks of a block group of ext4
	leastBlocks = 64    // of room that a file system has, whatever was asked for
	resvBlocks  = 4096  // blocks that the kernel keeps back for itself at most, and one in 50
)

// makeLoop makes a file system of p.Size bytes for files in an image and mounts it at the part's
// directory. The image's space is taken at once: a write that the limit allows cannot fail later because
// others filled the disk, when the kernel could no longer tell the writer.
func makeLoop(ctx context.Context, area, mkfs string, p part) error {
	mkfs, err := findMkfs(mkfs)
	if err == nil {
		// Before time is spent on what cannot be mounted.
		err = checkLoops()
	}
	if err != nil {
		return err
	}
	image := p.image(area)
	if err := makeImage(image, p.Size); err != nil {
		return err
	}
	// lazy_itable_init with noinit_itable: inode tables are not written before they are used. No journal:
	// what is in here is lost when the host crashes anyhow. verity is not used: with it, ext4 of Linux 6.16
	// and later has no large folios, in which a write is refused while there is room for less than it all,
	// and what is full does not look so.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize),
		"-i", strconv.FormatInt(inodeRatio(p.Size), 10), "-m", "0",
		"-O", "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,uninit_bg,large_dir,verity",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", image)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MKE2FS_CONFIG=/dev/null"}
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: %s: %w: %s", berth.ErrUnsupported, mkfs, err, strings.Join(strings.Fields(string(out)), " "))
	}
	if err := mountLoop(image, p.dir(area)); err != nil {
		return err
	}
	// fsck's directory; nobody would look for it here, and a volume is empty at its start.
	if err := os.Remove(filepath.Join(p.dir(area), "lost+found")); err != nil {
		return kindOf(err)
	}
	return nil
}

// remountLoop mounts the image of a part again. An image without a journal is sound only as long as the
// kernel that wrote it runs.
func remountLoop(area string, p part, boot string) error {
	if isMountPoint(p.dir(area)) {
		return nil
	}
	if boot != bootID() {
		return fmt.Errorf("%w: the host was started anew since", berth.ErrNotFound)
	}
	dev := deviceOf(p.image(area))
	if dev == "" {
		return mountLoop(p.image(area), p.dir(area))
	}
	// A mount namespace that is about to vanish has it mounted still. The same device is the same file
	// system; a second device with the same image would destroy it.
	if err := mountDevice("/dev/"+dev, p.dir(area)); err != nil {
		return fmt.Errorf("%s is in use by %s: %w", p.image(area), dev, err)
	}
	// While it was looked at it may have become the device of something else. Now it stays what it is.
	if mounted := deviceOf(p.image(area)); mounted != dev {
		return errors.Join(fmt.Errorf("%w: %s is no longer in use by %s", berth.ErrUnavailable, p.image(area), dev),
			unix.Unmount(p.dir(area), unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// dropLoop unmounts the file system at dir, where there is one; its loop device goes with it.
func dropLoop(dir string) error {
	if !isMountPoint(dir) {
		return nil
	}
	// What is deleted need not be written out first, as unmounting would.
	emptyDir(dir)
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// findMkfs looks where administrators' programs are, too: PATH often lacks these.
func findMkfs(given string) (string, error) {
	names := []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/local/sbin/mkfs.ext4"}
	if given != "" {
		names = []string{given}
	}
	for _, name := range names {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%w: there is no mkfs.ext4 (install e2fsprogs)", berth.ErrUnsupported)
}

// makeImage makes an image whose file system will have room for want bytes.
func makeImage(path string, want int64) (err error) {
	size := imageBytes(want)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return kindOf(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = f.Truncate(size)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return &fault{
			text: fmt.Sprintf("%s of disk were asked for, and the file system of %s has not so much free", inWords(want), filepath.Dir(path)),
			kind: berth.ErrExhausted, cause: err,
		}
	}
	return kindOf(err)
}

// inodeRatio is how many bytes of space there are for each inode. In small file systems no file is too
// small: blocks run out before inodes.
func inodeRatio(size int64) int64 {
	switch {
	case size <= 4<<30:
		return 4 << 10
	case size <= 64<<30:
		return 8 << 10
	default:
		return 16 << 10
	}
}

// imageBytes is the size of an image whose file system has room for size bytes of files.
func imageBytes(size int64) int64 {
	want := max((size+blockSize-1)/blockSize, leastBlocks)
	n := want
	for {
		groups := (n + groupSize - 1) / groupSize
		inodes := (n*blockSize + inodeRatio(size) - 1) / inodeRatio(size)
		tables := (inodes*inodeSize + blockSize - 1) / blockSize
		descriptors := (groups*32 + blockSize - 1) / blockSize
		used := groups*2 + tables + groups + backups(groups)*(1+descriptors) + min(n/50, resvBlocks) + 2
		if n-used >= want {
			return n * blockSize
		}
		n += want - (n - used)
	}
}

// backups is how many groups hold a copy of the superblock: 0, 1, and the powers of 3, 5 and 7.
func backups(groups int64) int64 {
	n := int64(2)
	for _, base := range []int64{3, 5, 7} {
		for g := base; g < groups; g *= base {
			n++
		}
	}
	return min(n, groups)
}

// mountLoop mounts the file system in image at dir, through a loop device that goes when the mount goes.
func mountLoop(image, dir string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return kindOf(err)
	}
	defer f.Close()
	dev, err := attach(f, image)
	if err != nil {
		return err
	}
	// Until it is mounted the device lives by this descriptor.
	defer dev.Close()
	return mountDevice(dev.Name(), dir)
}

func mountDevice(dev, dir string) error {
	// barrier=0: syncs need not reach the disk, see the journal.
	if err := unix.Mount(dev, dir, "ext4", unix.MS_NOATIME, "noinit_itable,nodiscard,barrier=0,errors=remount-ro"); err != nil {
		return fmt.Errorf("%w: mount %s: %w", berth.ErrUnsupported, dev, err)
	}
	return nil
}

func checkLoops() error {
	if err := unix.Access("/dev/loop-control", unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("%w: no loop devices: /dev/loop-control: %w", berth.ErrUnsupported, err)
	}
	return nil
}

// attach makes image the backing file of a free loop device.
func attach(image *os.File, path string) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: no loop devices: %w", berth.ErrUnsupported, err)
	}
	defer ctl.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("%w: no free loop device: %w", berth.ErrUnsupported, err)
		}
		dev, err := openLoopDevice(n, path)
		if err != nil {
			return nil, err
		}
		err = configure(dev, image, path)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("%w: loop device %d: %w", berth.ErrUnsupported, n, err)
		}
	}
	return nil, fmt.Errorf("%w: others took %d free loop devices away", berth.ErrUnavailable, loopTries)
}

// openLoopDevice opens a loop device, with a node of its own where /dev has none.
func openLoopDevice(n int, image string) (*os.File, error) {
	dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
	if err == nil {
		return dev, nil
	}
	node := image + ".loop"
	if merr := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n)))); merr != nil {
		return nil, fmt.Errorf("%w: %w", berth.ErrUnsupported, err)
	}
	if dev, err = os.OpenFile(node, os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("%w: %w", berth.ErrUnsupported, err)
	}
	return dev, nil
}

func configure(dev, image *os.File, path string) error {
	cfg := unix.LoopConfig{Fd: uint32(image.Fd())}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], path)
	err := unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTTY) {
		return err
	}
	// Before Linux 5.8.
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(image.Fd())); err != nil {
		return err
	}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(dev.Fd()), &cfg.Info); err != nil {
		return errors.Join(err, unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0))
	}
	return nil
}

// deviceOf names the loop device whose backing file is image; "" if there is none.
func deviceOf(image string) string {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return ""
	}
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.TrimSuffix(string(data), "\n") == image {
			return filepath.Base(filepath.Dir(filepath.Dir(f)))
		}
	}
	return ""
}

// isMountPoint reports whether another file system than its parent's is mounted at dir.
func isMountPoint(dir string) bool {
	var st, parent unix.Stat_t
	if unix.Lstat(dir, &st) != nil || unix.Lstat(filepath.Dir(dir), &parent) != nil {
		return false
	}
	return st.Dev != parent.Dev
}
