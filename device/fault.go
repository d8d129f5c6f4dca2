package device

import (
	"bytes"
	"errors"
	"iter"
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
// calls them. Others are mostly faults of programs, as is 109, the timeout of a context switch: NVIDIA's device plugin for
// Kubernetes takes a GPU for healthy after it.
var fatalXids = map[int]string{
	48: "double bit ECC error", 62: "internal micro-controller halt", 64: "row remapping failed", 74: "NVLink error",
	79: "GPU has fallen off the bus", 95: "uncontained ECC error", 110: "security fault",
	119: "GSP RPC timeout", 120: "GSP error", 140: "unrecovered ECC error", 143: "GPU initialization error", 154: "GPU recovery action changed",
}

var (
	// 4,1234,123456789,-;NVRM: Xid (PCI:0000:06:00): 79, pid=…
	// Priority and facility, number, microseconds, flags; the message; in further lines, properties.
	recordForm = regexp.MustCompile(`^(\d+),\d+,(\d+),[^;]*;(.*)`)
	// 154 tells of each change of what the driver would have done with the GPU, also to nothing.
	recovered = regexp.MustCompile(`\bto 0x[0-9a-fA-F]+ \(None\)\s*$`)
	// Both are whole beginnings of messages: others may quote what any user has said. Nor may the name of a process
	// that AMD's driver tells of say the rest.
	xidForm = regexp.MustCompile(`^NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),`)
	// What the drivers of GPUs have in common says of one that nobody can use until it is bound anew, reset by its bus, or more.
	wedged = regexp.MustCompile(`^(?:amdgpu|i915|xe) ([0-9a-fA-F:.]+): \[drm\] (device wedged, needs recovery)`)
	// i915 lets nobody use a GPU after these, until the machine has slept or the driver is bound anew. Older ones say nothing of drm before
	// it, and of which part of the GPU; the oldest name no GPU in the second.
	intelFault = regexp.MustCompile(`^(?:i915|xe) ([0-9a-fA-F:.]+): (?:\[drm\] \*ERROR\* )?(?:GT\d+: )?(?:CRITICAL: )?(Xe has declared device [0-9a-fA-F:.]+ as wedged|Failed to reset chip|Failed to initialise HW following reset|Failed to (?:re-)?initialize GPU, declaring it wedged)`)
	amdFault   = regexp.MustCompile(`^amdgpu ([0-9a-fA-F:.]+): amdgpu: (GPU reset.*failed|.*uncorrectable hardware errors? detected.*|.*device lost from bus.*)`)
)

// FindFaults returns the fatal errors that devices of a host have reported since it booted: in the kernel's log, as
// far as this process may read it, and in FaultFile; and what their drivers say of them now, where they have been asked.
func FindFaults(h *Host, devices []Device) []Fault {
	faults := append(fileFaults(h, devices), standingFaults(devices, time.Now())...)
	if h.Root() == "/" && len(devices) > 0 {
		faults = append(faults, logFaults(kernelLog(), bootTime(), devices)...)
	}
	return faults
}

func standingFaults(devices []Device, now time.Time) (faults []Fault) {
	for _, d := range devices {
		if d.Health != nil {
			faults = append(faults, Fault{UUID: d.UUID, Reason: *d.Health, Time: now, Standing: &Standing{*d.Health, now}})
		}
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
		for _, uuid := range devicesOf(id, devices) {
			faults = append(faults, Fault{UUID: uuid, Reason: strings.TrimSpace(reason), Time: st.ModTime()})
		}
	}
	return faults
}

// devicesOf finds the device or slice with a UUID, or the devices at a PCI address: all partitions of a GPU are there. NVIDIA's
// driver leaves out the function; where there is one, others of the slot are other devices, as virtual ones of SR-IOV.
func devicesOf(id string, devices []Device) (found []string) {
	for _, d := range devices {
		at, address := d.PCI, id
		if !strings.Contains(id, ".") {
			at, _, _ = strings.Cut(at, ".")
		}
		if d.UUID == id || at != "" && strings.EqualFold(at, address) {
			found = append(found, d.UUID)
			continue
		}
		for i := range d.Slices {
			if u := (Unit{Device: d, Slice: &d.Slices[i]}); u.Is(id) {
				found = append(found, u.Key())
			}
		}
	}
	return found
}

// drivers are what records begin with that drivers of GPUs have written.
var drivers = [][]byte{[]byte(";NVRM: Xid"), []byte(";amdgpu "), []byte(";i915 "), []byte(";xe ")}

// logFaults reads records of the kernel's log. Only what the kernel itself has said counts, not what was written into
// its log.
func logFaults(records iter.Seq[[]byte], boot time.Time, devices []Device) (faults []Fault) {
	for record := range records {
		if !slices.ContainsFunc(drivers, func(begins []byte) bool { return bytes.Contains(record, begins) }) {
			continue
		}
		r := recordForm.FindSubmatch(record)
		if r == nil {
			continue
		}
		if priority, err := strconv.Atoi(string(r[1])); err != nil || priority>>3 != 0 {
			continue // of another facility than the kernel
		}
		id, reason := messageFault(string(r[3]))
		micros, err := strconv.ParseInt(string(r[2]), 10, 64)
		if reason == "" || err != nil {
			continue
		}
		for _, uuid := range devicesOf(id, devices) {
			faults = append(faults, Fault{UUID: uuid, Reason: reason, Time: boot.Add(time.Duration(micros) * time.Microsecond)})
		}
	}
	return faults
}

// messageFault returns the PCI address of a device and the fatal error that a message tells of it; "" if none.
func messageFault(message string) (id, reason string) {
	if m := xidForm.FindStringSubmatch(message); m != nil {
		xid, _ := strconv.Atoi(m[2])
		const recoveryAction = 154
		if fatalXids[xid] == "" || xid == recoveryAction && recovered.MatchString(message) {
			return "", ""
		}
		return m[1], "Xid " + m[2] + ": " + fatalXids[xid]
	}
	for _, form := range []*regexp.Regexp{amdFault, intelFault, wedged} {
		if m := form.FindStringSubmatch(message); m != nil {
			return m[1], strings.TrimSpace(m[2])
		}
	}
	return "", ""
}

// kernelLog is what the kernel keeps of its log, as records; none where this process may not read it. These, unlike
// the lines of syslog(2), begin where a message does: a newline within one is written as \x0a.
func kernelLog() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		// In some containers it is a link to their terminal, from which nothing must be read.
		fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 11) {
			return
		}
		readRecords(func(b []byte) (int, error) { return unix.Read(fd, b) })(yield)
	}
}

// readRecords returns a record of each read, valid until the next, up to the first read that would wait for one.
func readRecords(read func([]byte) (int, error)) iter.Seq[[]byte] {
	const longest = 8192 // bytes; no kernel's are longer
	const most = 1 << 20 // more than any kernel keeps, if it logs faster than this reads
	return func(yield func([]byte) bool) {
		buf := make([]byte, longest)
		for range most {
			n, err := read(buf)
			switch {
			case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
				continue // EPIPE: the next records were overwritten, and the read after it goes on behind them
			case err != nil, n <= 0, !yield(buf[:n]):
				return
			}
		}
	}
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
