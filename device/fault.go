package device

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FaultFile is a file of a host in which errors of its GPUs can be told, beside the kernel's log: lines of a UUID or
// PCI address and the reason. They are as old as the file.
const FaultFile = "/run/berth/gpu-faults"

// fatalXids are the errors of NVIDIA's driver from which a GPU does not recover while it is in use, with what NVIDIA
// calls them. Others are mostly faults of programs.
var fatalXids = map[int]string{
	48: "double bit ECC error", 62: "internal micro-controller halt", 64: "row remapping failed", 74: "NVLink error",
	79: "GPU has fallen off the bus", 95: "uncontained ECC error", 109: "context switch timeout", 110: "security fault",
	119: "GSP RPC timeout", 120: "GSP error", 140: "unrecovered ECC error", 143: "GPU initialization error", 154: "GPU recovery action changed",
}

var (
	// [  123.456789] NVRM: Xid (PCI:0000:06:00): 79, pid=…
	xidForm = regexp.MustCompile(`^(?:<\d+>)?\[\s*(\d+)\.(\d+)\].*NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),`)
	// [  123.456789] amdgpu 0000:05:00.0: amdgpu: …
	amdFault = regexp.MustCompile(`^(?:<\d+>)?\[\s*(\d+)\.(\d+)\].*amdgpu ([0-9a-fA-F:.]+): amdgpu: (.*(?:GPU reset.*failed|uncorrectable hardware errors? detected.*|device lost from bus.*))`)
)

// findFaults returns the fatal errors that devices of a host have reported since it booted: in the kernel's log, as
// far as this process may read it, and in FaultFile.
func findFaults(h *Host, devices []Device) []Fault {
	faults := fileFaults(h, devices)
	if h.Root() == "/" && len(devices) > 0 {
		faults = append(faults, logFaults(kernelLog(), bootTime(), devices)...)
	}
	return faults
}

func fileFaults(h *Host, devices []Device) (faults []Fault) {
	st, err := h.Stat(FaultFile)
	if err != nil {
		return nil
	}
	data, err := h.ReadFile(FaultFile)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		id, reason, _ := strings.Cut(strings.TrimSpace(line), " ")
		if uuid := deviceOf(id, devices); uuid != "" {
			faults = append(faults, Fault{UUID: uuid, Reason: strings.TrimSpace(reason), Time: st.ModTime()})
		}
	}
	return faults
}

// deviceOf finds the device or slice with a UUID or, without its function, at a PCI address.
func deviceOf(id string, devices []Device) string {
	for _, d := range devices {
		at, _, _ := strings.Cut(d.PCI, ".")
		address, _, _ := strings.Cut(id, ".")
		if d.UUID == id || at != "" && strings.EqualFold(at, address) {
			return d.UUID
		}
		if slices.ContainsFunc(d.Slices, func(s Slice) bool { return s.UUID == id }) {
			return id
		}
	}
	return ""
}

// logFaults reads the kernel's log.
func logFaults(log string, boot time.Time, devices []Device) (faults []Fault) {
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "Xid") && !strings.Contains(line, "amdgpu") {
			continue
		}
		m, reason := xidForm.FindStringSubmatch(line), ""
		if m != nil {
			xid, _ := strconv.Atoi(m[4])
			if fatalXids[xid] == "" {
				continue
			}
			reason = "Xid " + m[4] + ": " + fatalXids[xid]
		} else if m = amdFault.FindStringSubmatch(line); m != nil {
			reason = strings.TrimSpace(m[4])
		} else {
			continue
		}
		seconds, _ := strconv.ParseInt(m[1], 10, 64)
		micros, _ := strconv.ParseInt(m[2], 10, 64)
		if uuid := deviceOf(m[3], devices); uuid != "" {
			at := boot.Add(time.Duration(seconds)*time.Second + time.Duration(micros)*time.Microsecond)
			faults = append(faults, Fault{UUID: uuid, Reason: reason, Time: at})
		}
	}
	return faults
}

// kernelLog is what the kernel keeps of its log; "" where this process may not read it.
func kernelLog() string {
	const readAll, sizeBuffer = 3, 10
	n, err := unix.Klogctl(sizeBuffer, nil)
	if err != nil || n <= 0 {
		return ""
	}
	buf := make([]byte, n)
	if n, err = unix.Klogctl(readAll, buf); err != nil {
		return ""
	}
	return string(buf[:n])
}

// bootTime is when the clock of the kernel's log began, to a second, so that it is the same each time.
func bootTime() time.Time {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err == nil {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
}
