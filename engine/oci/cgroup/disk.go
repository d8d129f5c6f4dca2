package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Since Linux 6.10 v1 counts a cgroup's bytes at a disk only after some throttling rule was written for that
// disk. A rule without a limit is enough, and leaves nothing but the counting.

// countDisks has the kernel count at all disks of the host where it does not yet.
func (h *Host) countDisks() {
	t := h.v1[blkio]
	if t == nil {
		return
	}
	on, err := read(t.mount + "/blkio.throttle.io_service_bytes")
	if err != nil {
		return
	}
	disks, _ := filepath.Glob("/sys/block/*/device") // those that stand for hardware
	for _, d := range disks {
		b, err := os.ReadFile(filepath.Dir(d) + "/dev")
		dev := strings.TrimSpace(string(b))
		if err != nil || counting(on, dev) {
			continue
		}
		_ = write(t.mount+t.base+"/blkio.throttle.read_bps_device", dev+" 0")
	}
}

// counting reports whether a file of blkio has figures of a device.
func counting(file []byte, dev string) bool {
	return bytes.HasPrefix(file, []byte(dev+" ")) || bytes.Contains(file, []byte("\n"+dev+" "))
}

// countsDisks reports whether v1 counts at any disk: where it does not, no bytes are unknown bytes. That it does is
// remembered for a while: it goes on until the disk is gone.
func (h *Host) countsDisks() bool {
	if seen := h.counted.Load(); seen != nil && time.Since(*seen) < time.Minute {
		return true
	}
	t := h.v1[blkio]
	b, err := read(t.mount + "/blkio.throttle.io_service_bytes")
	if err != nil || !bytes.Contains(b, []byte(":")) {
		return false
	}
	h.counted.Store(new(time.Now()))
	return true
}
