package groups

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setgroups sets the groups of this thread alone.
func setgroups(gids []uint32) error {
	var first unsafe.Pointer
	if len(gids) > 0 {
		first = unsafe.Pointer(unsafe.SliceData(gids))
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(first), 0); errno != 0 {
		return errno
	}
	return nil
}
