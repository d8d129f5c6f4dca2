package device

import (
	"errors"
	"iter"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestLogFaults(t *testing.T) {
	devices := []Device{
		{Vendor: "nvidia", UUID: "GPU-a", PCI: "0000:06:00.0"},
		{Vendor: "amd", UUID: "GPU-b", PCI: "0000:05:00.0"},
		{Vendor: "amd", UUID: "GPU-c/0", PCI: "0000:26:00.0"},
		{Vendor: "amd", UUID: "GPU-c/1", PCI: "0000:26:00.0"},
		{Vendor: "intel", UUID: "0000-03-00-0-0xe20b", PCI: "0000:03:00.0"},
		{Vendor: "intel", UUID: "0000-03-00-1-0xe20b", PCI: "0000:03:00.1"}, // a virtual one of the same
	}
	boot := time.Unix(1000, 0)
	xid := []Fault{{UUID: "GPU-a", Reason: "Xid 79: GPU has fallen off the bus", Time: boot.Add(12500 * time.Millisecond)}}
	recovery := []Fault{{UUID: "GPU-a", Reason: "Xid 154: GPU recovery action changed", Time: boot.Add(12500 * time.Millisecond)}}
	amd := func(reason string) []Fault {
		return []Fault{{UUID: "GPU-b", Reason: reason, Time: boot.Add(14 * time.Second)}}
	}
	intel := func(reason string) []Fault {
		return []Fault{{UUID: "0000-03-00-0-0xe20b", Reason: reason, Time: boot.Add(15 * time.Second)}}
	}
	for name, tt := range map[string]struct {
		record string
		want   []Fault
	}{
		"Intel, a virtual one": {"6,9,15000000,-;xe 0000:03:00.1: [drm] device wedged, needs recovery\n", []Fault{
			{UUID: "0000-03-00-1-0xe20b", Reason: "device wedged, needs recovery", Time: boot.Add(15 * time.Second)},
		}},
		"Intel, xe": {
			`3,9,15000000,-;xe 0000:03:00.0: [drm] *ERROR* CRITICAL: Xe has declared device 0000:03:00.0 as wedged.\x0aIOCTLs and executions are blocked.` + "\n SUBSYSTEM=pci\n DEVICE=+pci:0000:03:00.0\n",
			intel("Xe has declared device 0000:03:00.0 as wedged"),
		},
		"Intel, xe, of them all":        {"6,9,15000000,-;xe 0000:03:00.0: [drm] device wedged, needs recovery\n", intel("device wedged, needs recovery")},
		"Intel, xe, it was nothing":     {"6,9,15000000,-;xe 0000:03:00.0: [drm] device wedged, but recovered through reset\n", nil},
		"Intel, xe, a reset":            {"3,9,15000000,-;xe 0000:03:00.0: [drm] *ERROR* Tile0: GT0: reset failed (-ETIMEDOUT)\n", nil},
		"Intel, i915":                   {"3,9,15000000,-;i915 0000:03:00.0: [drm] *ERROR* GT0: Failed to reset chip\n", intel("Failed to reset chip")},
		"Intel, an older i915":          {"3,9,15000000,-;i915 0000:03:00.0: [drm] *ERROR* Failed to initialise HW following reset (-5)\n", intel("Failed to initialise HW following reset")},
		"Intel, a very old i915":        {"3,9,15000000,-;i915 0000:03:00.0: Failed to reset chip\n", intel("Failed to reset chip")},
		"Intel, i915, from the start":   {"3,9,15000000,-;i915 0000:03:00.0: [drm] *ERROR* GT1: Failed to initialize GPU, declaring it wedged!\n", intel("Failed to initialize GPU, declaring it wedged")},
		"Intel, an older i915, resumed": {"3,9,15000000,-;i915 0000:03:00.0: Failed to re-initialize GPU, declaring it wedged!\n", intel("Failed to re-initialize GPU, declaring it wedged")},
		"Intel, i915, a hang":           {"5,9,15000000,-;i915 0000:03:00.0: [drm] GPU HANG: ecode 12:1:84dffffb, in Failed to reset chip [77]\n", nil},
		"Intel, quoted":                 {"3,9,15000000,-;overlay: failed to resolve ';xe 0000:03:00.0: [drm] device wedged, needs recovery': -2\n", nil},
		"Intel, written into the log":   {"11,9,15000000,-;xe 0000:03:00.0: [drm] device wedged, needs recovery\n", nil},
		"Intel, another":                {"6,9,15000000,-;xe 0000:04:00.0: [drm] device wedged, needs recovery\n", nil},
		"AMD, wedged":                   {"6,9,14000000,-;amdgpu 0000:05:00.0: [drm] device wedged, needs recovery\n", amd("device wedged, needs recovery")},
		"fatal":                         {"4,812,12500000,-;NVRM: Xid (PCI:0000:06:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n", xid},
		"as NVIDIA's driver has it":     {"2,812,12500000,c;NVRM: Xid (PCI:0000:06:00): 79, pid=1\n", xid},
		"of a kernel with callers":      {"4,812,12500000,-,caller=T77;NVRM: Xid (PCI:0000:06:00): 79, pid=1\n", xid},
		"of a program":                  {"4,812,12500000,-;NVRM: Xid (PCI:0000:06:00): 13, pid=77, name=python, Graphics SM Warp Exception\n", nil},
		"of a context that hung":        {"4,812,12500000,-;NVRM: Xid (PCI:0000:06:00): 109, pid=77, name=python, Ch 00000008, errorString CTX SWITCH TIMEOUT\n", nil},
		"there is something to do":      {"4,812,12500000,-;NVRM: Xid (PCI:0000:06:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)\n", recovery},
		"nothing is to be done":         {"4,812,12500000,-;NVRM: Xid (PCI:0000:06:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)\n", nil},
		"a name that says so":           {"4,812,12500000,-;NVRM: Xid (PCI:0000:06:00): 154, name=to 0x0 (None), GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)\n", recovery},
		"AMD, partitions": {"3,9,14000000,-;amdgpu 0000:26:00.0: amdgpu: GPU reset(2) failed\n", []Fault{
			{UUID: "GPU-c/0", Reason: "GPU reset(2) failed", Time: boot.Add(14 * time.Second)}, {UUID: "GPU-c/1", Reason: "GPU reset(2) failed", Time: boot.Add(14 * time.Second)},
		}},
		"of a GPU that is another":   {"4,812,12500000,-;NVRM: Xid (PCI:0000:07:00): 79, pid=1\n", nil},
		"AMD":                        {"3,9,14000000,-;amdgpu 0000:05:00.0: amdgpu: GPU reset(2) failed\n SUBSYSTEM=pci\n DEVICE=+pci:0000:05:00.0\n", amd("GPU reset(2) failed")},
		"AMD, memory":                {"6,9,14000000,-;amdgpu 0000:05:00.0: amdgpu: 2 uncorrectable hardware errors detected in gfx block\n", amd("2 uncorrectable hardware errors detected in gfx block")},
		"AMD, no fault":              {"6,9,14000000,-;amdgpu 0000:05:00.0: amdgpu: ring gfx uses VM inv eng 0\n", nil},
		"AMD, a process's name":      {"3,9,14000000,-;amdgpu 0000:05:00.0: amdgpu:  Process GPU resetfailed pid 7 thread x pid 7\n", nil},
		"AMD, two names":             {"3,9,14000000,-;amdgpu 0000:05:00.0: amdgpu:  Process GPU reset pid 7 thread failed pid 7\n", nil},
		"quoted":                     {`3,5,12500000,-;overlay: failed to resolve '/tmp/none\x0aNVRM: Xid (PCI:0000:06:00): 79, x': -2` + "\n", nil},
		"quoted behind a semicolon":  {"3,5,12500000,-;overlay: failed to resolve ';NVRM: Xid (PCI:0000:06:00): 79, x': -2\n", nil},
		"quoted as a record":         {`3,5,12500000,-;overlay: failed to resolve '\x0a4,1,1,-;NVRM: Xid (PCI:0000:06:00): 79, x': -2` + "\n", nil},
		"AMD, quoted":                {"3,5,14000000,-;overlay: failed to resolve ';amdgpu 0000:05:00.0: amdgpu: GPU reset(2) failed': -2\n", nil},
		"a property":                 {"3,5,12500000,-;usb 1-1: a device\n X=;NVRM: Xid (PCI:0000:06:00): 79, x\n", nil},
		"written into the log":       {"12,5,12500000,-;NVRM: Xid (PCI:0000:06:00): 79, pid=1\n", nil},
		"AMD, written into the log":  {"11,5,14000000,-;amdgpu 0000:05:00.0: amdgpu: GPU reset(2) failed\n", nil},
		"a line of syslog(2)":        {"<4>[   12.500000] NVRM: Xid (PCI:0000:06:00): 79, pid=1\n", nil},
		"a time that is no number":   {"4,812,99999999999999999999,-;NVRM: Xid (PCI:0000:06:00): 79, pid=1\n", nil},
		"a record that is no record": {";NVRM: Xid (PCI:0000:06:00): 79, pid=1\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			records := slices.Values([][]byte{[]byte(tt.record)})
			if diff := cmp.Diff(tt.want, logFaults(records, boot, devices)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadRecords(t *testing.T) {
	const end = "end"
	type answer struct {
		record string
		err    error
	}
	for name, tt := range map[string]struct {
		answers []answer
		want    []string
	}{
		"none":           {[]answer{{"", unix.EAGAIN}, {end, nil}}, nil},
		"two":            {[]answer{{"a\n", nil}, {"b\n", nil}, {"", unix.EAGAIN}, {end, nil}}, []string{"a\n", "b\n"}},
		"overwritten":    {[]answer{{"a\n", nil}, {"", unix.EPIPE}, {"c\n", nil}, {"", unix.EAGAIN}, {end, nil}}, []string{"a\n", "c\n"}},
		"interrupted":    {[]answer{{"", unix.EINTR}, {"a\n", nil}, {"", unix.EAGAIN}, {end, nil}}, []string{"a\n"}},
		"refused":        {[]answer{{"a\n", nil}, {"", unix.EINVAL}, {end, nil}}, []string{"a\n"}},
		"an empty file":  {[]answer{{"", nil}, {end, nil}}, nil},
		"always overrun": {[]answer{{"", unix.EPIPE}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			reads := 0
			got := texts(readRecords(func(b []byte) (int, error) {
				a := tt.answers[min(reads, len(tt.answers)-1)]
				reads++
				if a.record == end {
					t.Fatal("it reads on after the end")
				}
				return copy(b, a.record), a.err
			}))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func texts(records iter.Seq[[]byte]) (all []string) {
	for r := range records {
		all = append(all, string(r))
	}
	return all
}

// The log of this machine has the form that is taken for granted, and reading it ends.
func TestKernelLog(t *testing.T) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel's log may not be read here: ", err)
	}
	n, err := unix.Read(fd, make([]byte, 8192))
	_ = unix.Close(fd)
	if n <= 0 {
		t.Skip("the kernel's log has no records here: ", err)
	}
	start := time.Now()
	n = 0
	for r := range kernelLog() {
		n++
		if !recordForm.Match(r) {
			t.Errorf("%q is no record", r)
		}
	}
	t.Logf("%d records in %v", n, time.Since(start))
	if n == 0 {
		t.Error("nothing was read of a log that has records")
	}
}
