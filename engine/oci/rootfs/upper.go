package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"golang.org/x/sys/unix"
)

// fileSystems are the names of file systems by their numbers, and whether overlay is known to write to them.
var fileSystems = map[int64]struct {
	name  string
	holds bool
}{
	unix.EXT4_SUPER_MAGIC: {"ext4", true}, unix.XFS_SUPER_MAGIC: {"xfs", true}, unix.BTRFS_SUPER_MAGIC: {"btrfs", true}, unix.TMPFS_MAGIC: {"tmpfs", true},
	unix.OVERLAYFS_SUPER_MAGIC: {"overlay", false}, unix.NFS_SUPER_MAGIC: {"nfs", false}, unix.FUSE_SUPER_MAGIC: {"fuse", false}, unix.V9FS_MAGIC: {"9p", false},
	unix.CIFS_SUPER_MAGIC: {"cifs", false}, unix.SMB2_SUPER_MAGIC: {"smb", false}, unix.CEPH_SUPER_MAGIC: {"ceph", false}, 0x0bd00bd0: {"lustre", false},
	0x47504653: {"gpfs", false}, 0x19830326: {"beegfs", false}, 0x2fc12fc1: {"zfs", false}, unix.ECRYPTFS_SUPER_MAGIC: {"ecryptfs", false},
	unix.MSDOS_SUPER_MAGIC: {"vfat", false}, unix.EXFAT_SUPER_MAGIC: {"exfat", false}, unix.RAMFS_MAGIC: {"ramfs", false},
}

// UpperRemedy is what to do where a file system cannot hold containers' writable layers.
const UpperRemedy = "give --data-dir a directory on ext4, xfs, btrfs or tmpfs"

// fileSystem is the name of the file system that holds dir, and whether overlay is known to write to it.
func fileSystem(dir string) (name string, holds bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown", false
	}
	if fs, ok := fileSystems[int64(st.Type)]; ok {
		return fs.name, fs.holds
	}
	return fmt.Sprintf("type %#x", st.Type), false
}

// explainUpper says of an overlay that the kernel has refused whether that is for the file system of its writable layer. The
// kernel says only that something is invalid, and the rest in its own log.
func explainUpper(root bundle.Root, err error) error {
	if root.Upper == "" || !errors.Is(err, unix.EINVAL) {
		return err
	}
	name, holds := fileSystem(root.Upper)
	if holds {
		return err
	}
	return fmt.Errorf("the file system of %s (%s) cannot hold containers' writable layers: %w: %s (%w)", root.Upper, name, berth.ErrUnsupported, UpperRemedy, err)
}

// HoldsUppers looks whether the file system of dir can hold containers' writable layers: of one that is not known to, by a
// mount of such a layer below dir. The error is berth.ErrUnsupported where it cannot.
func HoldsUppers(dir string, userXattr bool) error {
	if _, holds := fileSystem(dir); holds {
		return nil
	}
	at, err := os.MkdirTemp(dir, "try-overlay-")
	if err != nil {
		return fmt.Errorf("try an overlay: %w", err)
	}
	defer func() { _ = os.RemoveAll(at) }()
	root := bundle.Root{Layers: []string{filepath.Join(at, "l")}, Upper: filepath.Join(at, "u"), Work: filepath.Join(at, "w"), Volatile: true, UserXattr: userXattr}
	for _, d := range []string{root.Layers[0], root.Upper, root.Work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("try an overlay: %w", err)
		}
	}
	m, err := Overlay(root)
	if err != nil {
		return err
	}
	return m.Close()
}
