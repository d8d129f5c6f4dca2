package ociruntime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/device/cdi/program"
)

// listed is a program that allows some nodes and denies all else.
func listed(nodes ...berth.Node) program.Code { return parse(raw(nodes...)) }

func parse(code []byte) program.Code {
	c, err := program.Parse(code)
	if err != nil {
		panic(err)
	}
	return c
}

func raw(nodes ...berth.Node) []byte {
	b := prologue(nodes)
	for _, op := range []byte{movImm, exit} {
		b = append(b, op, 0)
		b = binary.NativeEndian.AppendUint16(b, 0)
		b = binary.NativeEndian.AppendUint32(b, 0)
	}
	return b
}

// TestCompareCodes: programs that allow more than was lent and given, or less, or are none, differ.
func TestCompareCodes(t *testing.T) {
	dev := func(major, minor uint32) berth.Node {
		return berth.Node{Type: "c", Major: major, Minor: minor, Device: berth.Device{Permissions: "rwm"}}
	}
	to := func(access string, n berth.Node) berth.Node { n.Permissions = access; return n }
	lent := []berth.Node{dev(195, 1), dev(10, 229)}
	exact := listed(dev(195, 1), dev(10, 229), dev(1, 3), dev(10, 200))
	allow := func(major, minor int64, access string) oci.LinuxDeviceCgroup {
		return oci.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	fuse := &oci.LinuxResources{Devices: []oci.LinuxDeviceCgroup{{Access: "rwm"}, allow(10, 229, "rwm"), allow(10, 237, "rw")}}
	everything := &oci.LinuxResources{Devices: []oci.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Access: "rwm"}}}
	for name, c := range map[string]struct {
		codes []program.Code
		given *oci.LinuxResources
		says  string
		lent  []berth.Node // else both
	}{
		"exactly":                    {[]program.Code{exact}, nil, "", nil},
		"another GPU":                {[]program.Code{listed(dev(195, 1), dev(195, 0), dev(10, 229))}, nil, `allow "c 195:0 rw", which was not lent`, nil},
		"another that is like a GPU": {[]program.Code{listed(dev(195, 1), dev(10, 237), dev(10, 229))}, nil, `allow "c 10:237 rw", which was not lent`, nil},
		"one that was given":         {[]program.Code{listed(dev(195, 1), dev(10, 237), dev(10, 229))}, fuse, "", nil},
		"a DRM node":                 {[]program.Code{listed(dev(195, 1), dev(226, 128), dev(10, 229))}, nil, `allow "c 226:128 rw"`, nil},
		"one too few":                {[]program.Code{listed(dev(10, 229))}, nil, `do not allow "c 195:1 rw"`, nil},
		"two, of which one denies":   {[]program.Code{exact, listed(dev(10, 229))}, nil, `do not allow "c 195:1 rw"`, nil},
		"two, of which one bounds":   {[]program.Code{listed(dev(195, 1), dev(195, 0), dev(10, 229)), exact}, nil, "", nil},
		"none at all":                {nil, nil, "and ", nil},
		"none, and it may do all":    {nil, everything, "", nil},
		"lent to be read":            {[]program.Code{listed(to("rm", dev(195, 1)))}, nil, "", []berth.Node{to("r", dev(195, 1))}},
		"to be read, and may write":  {[]program.Code{listed(dev(195, 1))}, nil, `allow "c 195:1 w", which was not lent`, []berth.Node{to("r", dev(195, 1))}},
		"to be read, and given":      {[]program.Code{listed(dev(10, 229))}, fuse, "", []berth.Node{to("r", dev(10, 229))}},
		"to be read, and may not":    {[]program.Code{listed(to("wm", dev(195, 1)))}, nil, `do not allow "c 195:1 r"`, []berth.Node{to("mr", dev(195, 1))}},
	} {
		if c.lent == nil {
			c.lent = lent
		}
		err := compareCodes(c.codes, c.given, c.lent)
		if (err == nil) != (c.says == "") || err != nil && (!errors.Is(err, grant.ErrDiffers) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v; want %q", name, err, c.says)
		}
	}
	call := append([]byte{unix.BPF_JMP | unix.BPF_CALL, 0, 0, 0, 1, 0, 0, 0}, raw()...)
	if err := compareCodes([]program.Code{parse(call)}, nil, lent); !errors.Is(err, program.ErrUnknown) {
		t.Errorf("a program that calls: %v", err)
	}
}

// TestEffective reads programs of the kernel back.
func TestEffective(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to attach programs")
	}
	mount := t.TempDir()
	if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	dir, err := os.MkdirTemp(mount, "berth-programs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	before, err := program.Codes(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	gpu := func(minor uint32, access string) berth.Node {
		return berth.Node{Type: "c", Major: 195, Minor: minor, Device: berth.Device{Permissions: access}}
	}
	for _, nodes := range [][]berth.Node{{gpu(3, "rwm"), gpu(4, "rwm"), gpu(6, "r")}, {gpu(3, "rwm"), gpu(6, "rw")}} {
		p, err := program.Load(raw(nodes...))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Attach(cgroup, unix.BPF_F_ALLOW_MULTI, nil); err != nil {
			t.Fatal(err)
		}
		_ = p.Close()
	}
	codes, err := program.Codes(cgroup)
	if err != nil || len(codes) != len(before)+2 {
		t.Fatalf("%d programs of %d, %v", len(codes), len(before), err)
	}
	for minor, want := range map[uint32]string{3: "rw", 4: "", 5: "", 6: "r"} {
		if got, err := program.Access(codes, "c", 195, minor); err != nil || got != want {
			t.Errorf("195:%d: %q, %v, want %q", minor, got, err, want)
		}
	}
}

// TestProgramsAreReplaced: a program that goes between the list and the look has them listed anew.
func TestProgramsAreReplaced(t *testing.T) {
	lists, gone := 0, uint32(1)
	list := func() ([]uint32, error) { lists++; return []uint32{7, gone}, nil }
	read := func(id uint32) (program.Code, error) {
		if id == gone {
			gone = 2
			if lists > 1 {
				return listed(), nil
			}
			return nil, fmt.Errorf("program 1: %w", unix.ENOENT)
		}
		return listed(), nil
	}
	if codes, err := program.Each(list, read); err != nil || len(codes) != 2 || lists != 2 {
		t.Errorf("%d programs, %v after %d lists", len(codes), err, lists)
	}
	never := func(uint32) (program.Code, error) { return nil, unix.ENOENT }
	if codes, err := program.Each(list, never); !errors.Is(err, unix.ENOENT) || codes != nil {
		t.Errorf("%d programs, %v", len(codes), err)
	}
}

// TestProof: what could not be compared is proved in a user namespace alone, and an error says how to do without.
func TestProof(t *testing.T) {
	hidden := errors.New("the kernel does not show the program")
	for _, c := range []struct {
		err    error
		userns bool
		says   string // "" is proved
	}{
		{nil, false, ""},
		{hidden, false, "berth.prove = false"},
		{hidden, true, "berth.prove = false"},
		{program.ErrUnknown, false, "berth.prove = false"},
		{fmt.Errorf("query: %w", unix.EPERM), false, "berth.prove = false"},
		{fmt.Errorf("query: %w", unix.EPERM), true, ""},
		{grant.ErrNoGroup, false, "berth.prove = false"},
		{grant.ErrNoGroup, true, ""},
		{grant.ErrDiffers, true, "does not hold exactly"},
	} {
		err := proofOf(c.err, c.userns)
		if (err == nil) != (c.says == "") || err != nil && (!errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%v, user namespace %v: %v", c.err, c.userns, err)
		}
		if errors.Is(err, grant.ErrDiffers) && strings.Contains(err.Error(), "berth.prove") {
			t.Errorf("a difference is told with the way to pass it over: %v", err)
		}
	}
}

func BenchmarkCompareCodes(b *testing.B) {
	var nodes []berth.Node
	for i := range uint32(20) { // as many as runtimes allow
		nodes = append(nodes, berth.Node{Type: "c", Major: 1, Minor: i, Device: berth.Device{Permissions: "rwm"}})
	}
	lent := []berth.Node{{Type: "c", Major: 195, Minor: 1, Device: berth.Device{Permissions: "rwm"}}, {Type: "c", Major: 510, Device: berth.Device{Permissions: "rwm"}}}
	code := listed(append(nodes, lent...)...)
	for b.Loop() {
		if err := compareCodes([]program.Code{code}, nil, lent); err != nil {
			b.Fatal(err)
		}
	}
}
