package docker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/device/cdi/program"
)

// programOf is a program that lets some devices be used, and no others.
func programOf(t *testing.T, nodes []berth.Node) program.Code {
	t.Helper()
	const load, differ, set, exit = unix.BPF_LDX | unix.BPF_W | unix.BPF_MEM, unix.BPF_JMP | unix.BPF_JNE, unix.BPF_ALU64 | unix.BPF_MOV, unix.BPF_JMP | unix.BPF_EXIT
	var b []byte
	add := func(op, registers byte, off uint16, imm uint32) {
		b = append(b, op, registers)
		b = binary.NativeEndian.AppendUint16(b, off)
		b = binary.NativeEndian.AppendUint32(b, imm)
	}
	add(load, 0x12, 4, 0) // the major number into register 2
	add(load, 0x13, 8, 0)
	for _, n := range nodes {
		add(differ, 2, 3, n.Major)
		add(differ, 3, 2, n.Minor)
		add(set, 0, 0, 1)
		add(exit, 0, 0, 0)
	}
	add(set, 0, 0, 0)
	add(exit, 0, 0, 0)
	c, err := program.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestProveRules: what a daemon's container may use is compared with what was lent, by rules of cgroup v1 and by programs of v2.
func TestProveRules(t *testing.T) {
	dev := func(path string, major, minor uint32) berth.Node {
		return berth.Node{Device: berth.Device{Host: path}, Type: "c", Major: major, Minor: minor}
	}
	gpu, control, mode, uvm := dev("/dev/nvidia1", 195, 1), dev("/dev/nvidiactl", 195, 255), dev("/dev/nvidia-modeset", 195, 254), dev("/dev/nvidia-uvm", 511, 0)
	own := &lending{set: &grant.Set{Nodes: []berth.Node{gpu, control, mode, uvm}}}
	nvidias := &lending{set: own.set, optional: func(p string) bool { return !ownNode.MatchString(p) }}
	fuse := dev("/dev/fuse", 10, 229)
	usual := []berth.Node{dev("", 1, 3), dev("", 5, 1), dev("", 10, 200), fuse}
	for name, c := range map[string]struct {
		of   *lending
		has  []berth.Node
		says string
	}{
		"exactly":                              {own, []berth.Node{gpu, control, mode, uvm}, ""},
		"another GPU":                          {own, []berth.Node{gpu, control, mode, uvm, dev("", 195, 0)}, `allow "c 195:0 `},
		"a GPU of another vendor":              {own, []berth.Node{gpu, control, mode, uvm, dev("", 226, 128)}, `allow "c 226:128 `},
		"one too few":                          {own, []berth.Node{gpu, control, mode}, `do not allow "c 511:0 `},
		"what NVIDIA's runtime leaves out":     {nvidias, []berth.Node{gpu, control}, ""},
		"NVIDIA's runtime, all":                {nvidias, []berth.Node{gpu, control, mode, uvm}, ""},
		"NVIDIA's runtime, without the GPU":    {nvidias, []berth.Node{control, uvm}, `do not allow "c 195:1 `},
		"NVIDIA's runtime, and another's, too": {nvidias, []berth.Node{gpu, control, dev("", 195, 2)}, `allow "c 195:2 `},
	} {
		has := append(c.has, usual...)
		var rules []string
		for _, n := range has {
			rules = append(rules, fmt.Sprintf("c %d:%d rwm", n.Major, n.Minor))
		}
		for version, err := range map[string]error{
			"v1": c.of.proveRules(rules, []berth.Node{fuse}),
			"v2": c.of.provePrograms([]program.Code{programOf(t, has)}, []berth.Node{fuse}),
		} {
			if (err == nil) != (c.says == "") || err != nil && (!errors.Is(err, grant.ErrDiffers) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%s on %s: %v; want %q", name, version, err, c.says)
			}
		}
	}
	if err := own.provePrograms(nil, nil); !errors.Is(err, grant.ErrDiffers) {
		t.Errorf("no rules at all: %v", err)
	}
	call, err := program.Parse([]byte{unix.BPF_JMP | unix.BPF_CALL, 0, 0, 0, 1, 0, 0, 0})
	if err != nil {
		t.Fatal(err)
	}
	if err := own.provePrograms([]program.Code{call}, nil); !errors.Is(err, program.ErrUnknown) || errors.Is(err, grant.ErrDiffers) {
		t.Errorf("a program that cannot be told: %v", err)
	}
}
