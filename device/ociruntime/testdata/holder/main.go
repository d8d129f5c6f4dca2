// Command holder is the command of a test's container: it opens the GPUs that the container was lent, and proves by a
// lock on a file for each that no other container has one of them. Then it stays until it is killed.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := hold(os.Args[1], os.Args[2]); err != nil {
		// What a container says after its runtime was killed, nobody reads.
		_ = os.WriteFile(filepath.Join(os.Args[1], "fault-"+os.Args[2]), []byte(err.Error()), 0o600)
		os.Exit(1)
	}
	time.Sleep(time.Hour)
}

// hold takes what id was lent. dir is where all containers of the test have their locks.
func hold(dir, id string) error {
	for uuid := range strings.SplitSeq(os.Getenv("BERTH_GPUS"), ",") {
		fd, err := syscall.Open(filepath.Join(dir, uuid), syscall.O_RDWR|syscall.O_CREAT, 0o600)
		if err != nil {
			return err
		}
		if err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			other := make([]byte, 64)
			n, _ := syscall.Pread(fd, other, 0)
			return fmt.Errorf("%s is held by %s and by %s", uuid, other[:n], id)
		}
		if err := syscall.Ftruncate(fd, 0); err != nil {
			return err
		}
		if _, err := syscall.Pwrite(fd, []byte(id), 0); err != nil {
			return err
		}
	}
	nodes, err := filepath.Glob("/dev/nvidia[0-9]*")
	if err != nil {
		return err
	}
	if len(nodes) != strings.Count(os.Getenv("BERTH_GPUS"), ",")+1 {
		return fmt.Errorf("its GPUs are %s, and it has %v", os.Getenv("BERTH_GPUS"), nodes)
	}
	for _, n := range nodes {
		if _, err := syscall.Open(n, syscall.O_RDWR, 0); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, "ran-"+id), nil, 0o600)
}
