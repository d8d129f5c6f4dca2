package enginetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// FakeGID is the group of the fake GPU that is not for everybody.
const FakeGID = 4321

// fakes are the drivers whose devices stand for GPUs: every kernel has some of them, to open one does nothing, and
// no container may by itself.
var fakes = []string{"fuse", "loop-control", "autofs", "kvm", "cpu_dma_latency", "vsock", "userfaultfd"}

// FakeGPUs makes device nodes in dir that stand for GPUs: two for everybody, whose numbers differ, and one with the
// first's number that is for root and FakeGID. It needs the right to make device nodes, and that dir is on a file
// system with devices.
func FakeGPUs(dir string) ([]berth.Node, error) {
	minors, err := miscMinors()
	if err != nil {
		return nil, err
	}
	var all []berth.Node
	for _, name := range fakes {
		minor, ok := minors[name]
		if !ok || len(all) == 2 {
			continue
		}
		n := berth.Node{Device: berth.Device{Host: fmt.Sprintf("%s/gpu%d", dir, len(all))}, Type: "c", Major: 10, Minor: minor}
		if err := makeNode(&n, 0o666, 0); err != nil {
			return nil, err
		}
		f, err := os.Open(n.Host)
		if err != nil { // a driver that is not there
			_ = os.Remove(n.Host)
			continue
		}
		_ = f.Close()
		all = append(all, n)
	}
	if len(all) < 2 {
		return nil, fmt.Errorf("this host has fewer than two of the devices %s", strings.Join(fakes, ", "))
	}
	private := all[0]
	private.Host = filepath.Join(dir, "private")
	return append(all, private), makeNode(&private, 0o660, FakeGID)
}

// miscMinors are the minor numbers of what has the major number 10.
func miscMinors() (map[string]uint32, error) {
	raw, err := os.ReadFile("/proc/misc")
	if err != nil {
		return nil, err
	}
	minors := map[string]uint32{}
	for line := range strings.Lines(string(raw)) {
		var minor uint32
		var name string
		if _, err := fmt.Sscan(line, &minor, &name); err == nil {
			minors[name] = minor
		}
	}
	return minors, nil
}

func makeNode(n *berth.Node, mode uint32, gid int) error {
	err := errors.Join(
		unix.Mknod(n.Host, unix.S_IFCHR|mode, int(unix.Mkdev(n.Major, n.Minor))),
		unix.Chown(n.Host, 0, gid), unix.Chmod(n.Host, mode),
	)
	if err != nil {
		return fmt.Errorf("make fake GPU %s: %w", n.Host, err)
	}
	return nil
}
