// Package devicetest makes hosts with GPUs that do not exist, for tests: the files by which drivers tell of
// themselves, and as their nodes real character devices that a container may open only if it was lent them.
package devicetest

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device"
)

// Options say what a host has.
type Options struct {
	NVIDIA, AMD int
	Hive        int // how many of AMD's, the last ones, have links to each other
	MIG         int // into how many slices the first of NVIDIA's is divided
	// Recorded lists the nodes instead of making them, which needs root.
	Recorded bool
}

// Host is a host that Options describe. Its Root is what device.OpenHost takes.
type Host struct {
	Root        string
	NVIDIA, AMD []GPU

	tb     testing.TB
	nodes  []device.Node
	hive   int
	unique uint64 // of the UUIDs: tests that run at once share the machine's ledger
}

// GPU is one of a host's GPUs.
type GPU struct {
	UUID  string
	Index int
	Node  device.Node // the one that is no other GPU's, with its path in the host

	Slices []Slice // of one that is divided: they are lent, not the whole
}

// Slice is a MIG slice of a GPU.
type Slice struct {
	UUID string
	Node device.Node // of its compute instance, which is no other slice's
	Cap  device.Node // of its GPU instance
}

// NVIDIA's driver of the hosts, and the memory of AMD's GPUs, and their use, of which NVIDIA's say nothing without their library.
const (
	DriverVersion = "550.54.15"
	CUDAVersion   = "12.4"
	AMDMemory     = 64 << 30
	AMDUsed       = 3 << 30 // bytes of its memory
	AMDBusy       = 40      // percent
)

// The nodes are of the kernel's miscellaneous devices: runtimes let no container open them unasked, and on a
// plain host the first four can be opened: fuse, kvm or what stands for it, autofs, loop-control. Those beyond have numbers
// without a driver.
const major = 10

func minor(i int) uint32 {
	if open := []uint32{229, second(), 235, 237}; i < len(open) {
		return open[i]
	}
	return uint32(100 + i)
}

// second is kvm, or, on a machine that has none, as many virtual ones, another device that can be opened; those have no fixed
// numbers.
func second() uint32 {
	raw, _ := os.ReadFile("/proc/misc")
	there := map[string]uint32{}
	for line := range strings.Lines(string(raw)) {
		var n uint32
		var name string
		if _, err := fmt.Sscan(line, &n, &name); err == nil {
			there[name] = n
		}
	}
	const kvm = 232
	for _, name := range []string{"kvm", "vsock", "userfaultfd", "vga_arbiter"} {
		if n, ok := there[name]; ok {
			return n
		}
	}
	return kvm
}

// New makes a host in a directory of the test's. The GPUs of each vendor have the same nodes, beginning with the
// same: those of two vendors are to be lent one at a time.
func New(tb testing.TB, o Options) *Host {
	tb.Helper()
	h := &Host{Root: tb.TempDir(), tb: tb, hive: o.Hive, unique: unique()}
	h.write("/proc/devices", fmt.Sprintf("Character devices:\n%3d nvidia\n%3d nvidia-caps\n%3d nvidia-uvm\n\nBlock devices:\n259 blkext\n", major, major, major))
	if o.NVIDIA > 0 {
		h.driverNVIDIA()
	}
	for i := range o.NVIDIA {
		h.addNVIDIA(i, o.NVIDIA)
	}
	if o.MIG > 0 {
		h.divide(o.MIG)
	}
	if o.AMD > 0 {
		h.node("/dev/kfd", 234, 0)
	}
	for i := range o.AMD {
		h.addAMD(i, o.AMD)
	}
	if o.Recorded {
		var list strings.Builder
		for _, n := range h.nodes {
			fmt.Fprintln(&list, n)
		}
		h.write(device.NodeList, list.String())
		return h
	}
	for _, n := range h.nodes {
		h.mknod(n)
	}
	return h
}

// unique is a random number whose last byte counts GPUs.
func unique() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:]) >> 1 &^ 0xff
}

// Write writes a file of the host.
func (h *Host) Write(name, text string) {
	h.tb.Helper()
	h.write(name, text)
}

// Path is where a path of the host lies on this machine.
func (h *Host) Path(name string) string { return filepath.Join(h.Root, name) }

func (h *Host) write(name, text string) {
	h.tb.Helper()
	file := h.Path(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		h.tb.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		h.tb.Fatal(err)
	}
}

func (h *Host) node(name string, minor, gid uint32) device.Node {
	n := device.Node{Path: name, Type: "c", Major: major, Minor: minor, Mode: 0o666, GID: gid}
	if gid != 0 {
		n.Mode = 0o660
	}
	h.nodes = append(h.nodes, n)
	return n
}

func (h *Host) mknod(n device.Node) {
	h.tb.Helper()
	file := h.Path(n.Path)
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = unix.Mknod(file, unix.S_IFCHR|uint32(n.Mode), int(unix.Mkdev(n.Major, n.Minor)))
	}
	if err == nil {
		err = os.Chmod(file, n.Mode) // whatever the umask
	}
	if err == nil {
		err = os.Chown(file, int(n.UID), int(n.GID))
	}
	if err != nil {
		h.tb.Fatalf("make a device node, which needs root: %v", err)
	}
}

// numa puts the first half of n GPUs near one node of the machine's memory, and the others near another.
func numa(i, n int) string { return fmt.Sprintln(2 * i / max(n, 2)) }
