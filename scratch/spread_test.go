package scratch_test

import (
	"os"
	"testing"

	"github.com/berth-project/berth/scratch"
	"golang.org/x/sys/unix"
)

// On ext4 the hint is given, and stays; elsewhere, and where there is nothing, nothing happens.
func TestSpread(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		scratch.Spread(dir)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	const topDir = 0x20000 // as chattr +T sets it
	if given := err == nil && flags&topDir != 0; given != (st.Type == unix.EXT4_SUPER_MAGIC) {
		t.Errorf("flags %#x, %v on a file system of type %#x", flags, err, st.Type)
	}
	scratch.Spread(dir + "/nothing")
	scratch.Spread("/dev/shm")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Error(entries, err)
	}
}
