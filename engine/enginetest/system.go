package enginetest

import (
	"os"
	"syscall"
)

const (
	usr2 = syscall.SIGUSR2
	hup  = syscall.SIGHUP
)

// diskUsed is what a file takes on disk, in bytes, without its holes.
func diskUsed(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512, nil
}
