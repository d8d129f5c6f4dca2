package scratch

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// The kernel's quota interface: linux/quota.h, linux/dqblk_xfs.h, linux/fs.h.
const (
	projectQuota    = 2        // PRJQUOTA
	quotaGet        = 0x800007 // Q_GETQUOTA
	quotaSet        = 0x800008 // Q_SETQUOTA
	quotaState      = 'X'<<8 + 5
	stateEnforced   = 1 << 5 // FS_QUOTA_PDQ_ENFD
	quotaHardBlocks = 1      // QIF_BLIMITS
	quotaHardInodes = 4      // QIF_ILIMITS
	quotaBlock      = 1024   // bytes of a block in limits

	getXattr        = 0x801c581f // FS_IOC_FSGETXATTR
	setXattr        = 0x401c5820 // FS_IOC_FSSETXATTR
	projectInherits = 0x200      // FS_XFLAG_PROJINHERIT

	// Project ids are taken at random from here, far from what people choose.
	firstProject = 0x4000_0000
	projectTries = 100

	// A project has an inode for each so many bytes of its limit, as small file systems have, and at least so many.
	quotaInodeBytes  = 4 << 10
	quotaLeastInodes = 4096
)

// quotaInodes is how many files and directories a project of size bytes may hold: the inodes of the file system are all tasks'.
func quotaInodes(size int64) uint64 {
	if size == 0 {
		return 0
	}
	return uint64(max(size/quotaInodeBytes, quotaLeastInodes))
}

// quotaBlockInfo is struct if_dqblk.
type quotaBlockInfo struct {
	HardBlocks, SoftBlocks, UsedBytes  uint64
	HardInodes, SoftInodes, UsedInodes uint64
	BlockTime, InodeTime               uint64
	Valid, _                           uint32
}

// fileXattr is struct fsxattr.
type fileXattr struct {
	Flags, ExtentSize, Extents, Project, CowExtentSize uint32
	_                                                  [8]byte
}

// quotas are the project quotas of one file system.
type quotas struct {
	dir    *os.File
	device string // its block device, for kernels without quotactl_fd
}

// openQuotas finds the project quotas of the file system that holds dir. ErrUnsupported if it has none, or
// only counts and does not limit.
func openQuotas(dir string) (*quotas, error) {
	if os.Geteuid() != 0 || !initialUserNS() {
		return nil, fmt.Errorf("%w: project quotas need root", berth.ErrUnsupported)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, kindOf(err)
	}
	q := &quotas{dir: f}
	var state [256]byte // struct fs_quota_stat, which begins with a version (1 byte), padding, flags (2)
	if err := q.call(quotaState, 0, unsafe.Pointer(&state)); err != nil {
		q.close()
		return nil, fmt.Errorf("%w: no project quotas on the file system of %s: %w", berth.ErrUnsupported, dir, err)
	}
	if binary.NativeEndian.Uint16(state[2:])&stateEnforced == 0 {
		q.close()
		return nil, fmt.Errorf("%w: the file system of %s is not mounted with prjquota", berth.ErrUnsupported, dir)
	}
	return q, nil
}

func (q *quotas) close() { q.dir.Close() }

// choose gives each part that needs one a project id that nobody uses. The ids are ours once they have
// limits; until then unlock must wait.
func (q *quotas) choose(parts []part) (unlock func(), err error) {
	unlock, err = lockProjects()
	if err != nil {
		return nil, err
	}
	taken := map[uint32]bool{}
	for i := range parts {
		if parts[i].Way != berth.DiskQuota {
			continue
		}
		id, err := q.free(taken)
		if err != nil {
			unlock()
			return nil, err
		}
		taken[id] = true
		parts[i].Project = id
	}
	return unlock, nil
}

func (q *quotas) free(taken map[uint32]bool) (uint32, error) {
	for range projectTries {
		var b [4]byte
		rand.Read(b[:])
		id := firstProject | binary.NativeEndian.Uint32(b[:])&(firstProject-1)
		var info quotaBlockInfo
		err := q.call(quotaGet, id, unsafe.Pointer(&info))
		unused := info.HardBlocks|info.SoftBlocks|info.UsedBytes|info.HardInodes|info.SoftInodes|info.UsedInodes == 0
		if !taken[id] && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || err == nil && unused) {
			return id, nil
		}
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
			return 0, fmt.Errorf("%w: read project quota: %w", berth.ErrUnsupported, err)
		}
	}
	return 0, fmt.Errorf("%w: no free project id", berth.ErrUnavailable)
}

// set makes dir, and all that will be made in it, count against a project of size bytes.
func (q *quotas) set(dir string, project uint32, size int64) error {
	if err := q.limit(project, size); err != nil {
		return fmt.Errorf("%w: set project quota: %w", berth.ErrUnsupported, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return kindOf(err)
	}
	defer f.Close()
	var x fileXattr
	if err := ioctl(f, getXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("%w: read project of %s: %w", berth.ErrUnsupported, dir, err)
	}
	x.Project = project
	x.Flags |= projectInherits
	if err := ioctl(f, setXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("%w: set project of %s: %w", berth.ErrUnsupported, dir, err)
	}
	return nil
}

// limit sets the hard limits of a project, rounded up to whole blocks, and so many inodes; 0 removes them.
func (q *quotas) limit(project uint32, size int64) error {
	info := quotaBlockInfo{
		HardBlocks: uint64(size+quotaBlock-1) / quotaBlock, HardInodes: quotaInodes(size),
		Valid: quotaHardBlocks | quotaHardInodes,
	}
	return q.call(quotaSet, project, unsafe.Pointer(&info))
}

// get reads what a project uses and its limit, both in bytes, and whether it may hold no more files.
func (q *quotas) get(project uint32) (used, limit int64, files bool, err error) {
	var info quotaBlockInfo
	if err := q.call(quotaGet, project, unsafe.Pointer(&info)); err != nil {
		return 0, 0, false, fmt.Errorf("read project quota: %w", err)
	}
	files = info.HardInodes > 0 && info.UsedInodes >= info.HardInodes
	return int64(info.UsedBytes), int64(info.HardBlocks) * quotaBlock, files, nil
}

// call is quotactl_fd(2), or quotactl(2) where the kernel is older than 5.14.
func (q *quotas) call(cmd int, id uint32, p unsafe.Pointer) error {
	full := uintptr(uint32(cmd)<<8 | projectQuota)
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, q.dir.Fd(), full, uintptr(id), uintptr(p), 0, 0)
	if errno == unix.ENOSYS {
		device, err := q.blockDevice()
		if err != nil {
			return err
		}
		name, err := unix.BytePtrFromString(device)
		if err != nil {
			return err
		}
		_, _, errno = unix.Syscall6(unix.SYS_QUOTACTL, full, uintptr(unsafe.Pointer(name)), uintptr(id), uintptr(p), 0, 0)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// blockDevice finds a node of the device that holds the file system.
func (q *quotas) blockDevice() (string, error) {
	if q.device != "" {
		return q.device, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(q.dir.Fd()), &st); err != nil {
		return "", err
	}
	link := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	target, err := os.Readlink(link)
	if err != nil {
		return "", err
	}
	q.device = filepath.Join("/dev", filepath.Base(target))
	return q.device, nil
}

// dropQuota takes the limit of a project away, so that its id can be used again.
func dropQuota(dir string, project uint32) error {
	if project == 0 {
		return nil
	}
	q, err := openQuotas(dir)
	if errors.Is(err, berth.ErrNotFound) || errors.Is(err, berth.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	defer q.close()
	if err := q.limit(project, 0); err != nil {
		return fmt.Errorf("remove project quota %d: %w", project, err)
	}
	return nil
}

// initialUserNS reports whether root here is root of the host: only he may set project ids.
func initialUserNS() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || slices.Equal(strings.Fields(string(data)), []string{"0", "0", "4294967295"})
}

// lockProjects keeps other processes of berth from choosing project ids.
func lockProjects() (unlock func(), err error) {
	f, err := os.OpenFile("/run/berth-projects.lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: lock project ids: %w", berth.ErrUnsupported, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func ioctl(f *os.File, cmd uint, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(cmd), uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}
