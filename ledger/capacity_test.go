package ledger

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

func TestHost(t *testing.T) {
	c, err := Host(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if c.CPU <= 0 || c.Memory < 64<<20 || c.Disk <= 0 || c.DiskOf == "" {
		t.Errorf("capacity is %+v", c)
	}
	if out, err := exec.Command("nproc").Output(); err == nil && c.Pool == "" && strings.TrimSpace(string(out)) != number(c.CPU) {
		t.Errorf("%g CPUs, and nproc says %s", c.CPU, out)
	}
	if _, err := Host("/does/not/exist"); err == nil {
		t.Error("a file system that is not there has a size")
	}
}

func TestCPUList(t *testing.T) {
	for want, cpus := range map[string][]int{"": {}, "0": {0}, "0-3": {0, 1, 2, 3}, "1,4-5,9": {1, 4, 5, 9}} {
		var set unix.CPUSet
		for _, c := range cpus {
			set.Set(c)
		}
		if got := cpuList(&set); got != want {
			t.Errorf("%v is %q, want %q", cpus, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1 << 10: "1KiB", 3 << 29: "1.5GiB", 100 << 20: "100MiB", 5 << 40: "5TiB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

// What is lent to those who may use other CPUs only takes nothing from these; to the whole host all counts.
func TestPools(t *testing.T) {
	cfg := config(t)
	part := cfg
	part.Capacity.Pool = "cpus 0-1"
	other := cfg
	other.Capacity.Pool = "cpus 2-3"
	a, err := open(t, other).Acquire(bg, Request{Task: "a", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	b, err := open(t, part).Acquire(bg, Request{Task: "b", CPU: 2, NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	_, err = open(t, cfg).Acquire(bg, Request{Task: "c", CPU: 1, NoWait: true})
	isKind(t, err, berth.ErrUnavailable)
}

func TestDiskIsLentByFileSystem(t *testing.T) {
	cfg := config(t)
	cfg.Capacity.Disk, cfg.Capacity.DiskOf = 100, "8:1"
	l := open(t, cfg)
	a, err := l.Acquire(bg, Request{Task: "a", Disk: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	_, err = l.Acquire(bg, Request{Task: "b", Disk: 30, NoWait: true})
	isKind(t, err, berth.ErrUnavailable)
	if !strings.Contains(err.Error(), "waiting for 30B of disk: 80B of 100B is lent to a") {
		t.Errorf("error is %q", err)
	}
	cfg.Capacity.DiskOf = "8:2"
	b, err := open(t, cfg).Acquire(bg, Request{Task: "b", Disk: 30, NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	_, err = l.Acquire(bg, Request{Task: "c", Disk: 101})
	isKind(t, err, berth.ErrExhausted)
}

// The files that a lease leaves open do not reach the programs that berth starts.
func TestHeldFilesAreNotInherited(t *testing.T) {
	l := open(t, config(t))
	ls, err := l.Acquire(bg, Request{Task: "a", CPU: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.Release()
	cmd := exec.CommandContext(t.Context(), "ls", "-l", "/proc/self/fd")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), ls.ID()) {
		t.Errorf("a child has the entry open:\n%s", out)
	}
}
