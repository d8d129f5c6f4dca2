package ledger

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

func free(t *testing.T, l *Ledger) bool {
	t.Helper()
	ls, err := l.Acquire(bg, Request{Task: "probe", CPU: 2, NoWait: true})
	if err == nil {
		ls.Release()
		return true
	}
	isKind(t, err, berth.ErrUnavailable)
	return false
}

func TestAdoptedLeaseOutlivesItsProcess(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	a := start(t, 0, order{Config: cfg, Task: "a", CPU: 2})
	id := a.say("lent")
	ls, err := l.Adopt(bg, id)
	if err != nil {
		t.Fatal(err)
	}
	a.kill()
	if free(t, l) {
		t.Error("it died with the process that asked for it")
	}
	b := start(t, 0, order{Config: cfg, Adopt: id})
	b.say("lent")
	ls.Release()
	ls.Release()
	if free(t, l) {
		t.Error("it was freed by one of two holders")
	}
	b.kill()
	if !free(t, l) {
		t.Error("nobody holds it, and it is not free")
	}
	_, err = l.Adopt(bg, id)
	isKind(t, err, berth.ErrNotFound)
	_, err = l.Adopt(bg, "../../etc/passwd")
	isKind(t, err, berth.ErrInvalid)
}

func TestProcessHolds(t *testing.T) {
	l := open(t, config(t))
	ls, err := l.Acquire(bg, Request{Task: "a", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	h, err := Process(sleep.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := ls.Handover(bg, h); err != nil {
		t.Fatal(err)
	}
	if free(t, l) {
		t.Error("free while its process lives")
	}
	isKind(t, ls.AddHolder(bg, h), berth.ErrConflict)
	again := h
	again.Start--
	if again.alive(l.id, l.id.uid) {
		t.Error("another process of the same id is taken for it")
	}
	_ = sleep.Process.Kill()
	// A zombie runs nothing.
	for range 1000 {
		if _, zombie, _ := startTime(sleep.Process.Pid); zombie {
			break
		}
	}
	_ = sleep.Wait()
	if !free(t, l) {
		t.Error("not free though its process is dead")
	}
	_, err = Process(sleep.Process.Pid)
	isKind(t, err, berth.ErrNotFound)
}

func TestCgroupHolds(t *testing.T) {
	needRoot(t)
	roots := []string{}
	for _, r := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"} {
		if _, err := os.Stat(r + "/cgroup.procs"); err == nil {
			roots = append(roots, r)
		}
	}
	if len(roots) == 0 {
		t.Fatal("this host has no cgroups")
	}
	for _, root := range roots {
		t.Run(filepath.Base(root), func(t *testing.T) {
			dir := filepath.Join(root, fmt.Sprintf("berth-ledger-test-%d", os.Getpid()))
			inner := filepath.Join(dir, "inner")
			if err := os.MkdirAll(inner, 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(dir)
			defer os.Remove(inner)
			sleep := exec.CommandContext(t.Context(), "sleep", "1000")
			if err := sleep.Start(); err != nil {
				t.Fatal(err)
			}
			defer sleep.Wait()
			defer sleep.Process.Kill()
			if err := os.WriteFile(inner+"/cgroup.procs", fmt.Append(nil, sleep.Process.Pid), 0); err != nil {
				t.Fatal(err)
			}
			cfg := config(t)
			l := open(t, cfg)
			a := start(t, 0, order{Config: cfg, Task: "a", CPU: 2, Cgroup: dir})
			a.say("lent")
			a.kill()
			if free(t, l) {
				t.Error("free while something is in its cgroup")
			}
			_ = sleep.Process.Kill()
			_ = sleep.Wait()
			if !free(t, l) {
				t.Error("not free though its cgroup is empty")
			}
			// A cgroup that belongs to another user holds nothing.
			h := Holder{Cgroup: root}
			if h.alive(l.id, alice) || !h.alive(l.id, 0) {
				t.Error("a user can name root's cgroup")
			}
		})
	}
	_, err := Cgroup("/sys/fs/cgroup/../../../etc")
	isKind(t, err, berth.ErrInvalid)
}

func TestHoldersAreAddedAndRemoved(t *testing.T) {
	l := open(t, config(t))
	ls, err := l.Acquire(bg, Request{Task: "a", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.Release()
	other, err := l.Adopt(bg, ls.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	one, two := Holder{Cgroup: cgroupRoot + "one"}, Holder{Cgroup: cgroupRoot + "two"}
	for _, err := range []error{ls.AddHolder(bg, one), other.AddHolder(bg, two), ls.AddHolder(bg, one), other.RemoveHolder(bg, one)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s, err := l.Snapshot(bg)
	if err != nil || !reflect.DeepEqual(s.Leases[0].Holders, []Holder{two}) {
		t.Errorf("holders are %+v (%v)", s.Leases[0].Holders, err)
	}
}

func TestRemovedFilesAreWrittenAgain(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	a, err := l.Acquire(bg, Request{Task: "a", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(a.entry.path); err != nil {
		t.Fatal(err)
	}
	if err := a.Refresh(bg); err != nil {
		t.Fatal(err)
	}
	if free(t, l) {
		t.Error("free though a has it")
	}
	b := start(t, 0, order{Config: cfg, Task: "b", CPU: 2})
	b.say("waiting")
	c := start(t, 0, order{Config: cfg, Task: "c", CPU: 2})
	c.say("waiting")
	lose := func() {
		s, err := l.Snapshot(bg)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(s.Waiting[0].path); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	for range 1000 {
		s, err := l.Snapshot(bg)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Waiting) == 2 && s.Waiting[0].Task == "b" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s, err := l.Snapshot(bg); err != nil || len(s.Waiting) != 2 || s.Waiting[0].Task != "b" {
		t.Errorf("b has lost its place: %+v (%v)", s.Waiting, err)
	}
	// What is claimed without its file is in the ledger all the same.
	c.kill()
	lose()
	a.Release()
	b.say("lent")
	if free(t, l) {
		t.Error("free though b has it")
	}
}

// What berth does rootless: the process is root of a user namespace, which shows everybody else as nobody.
func TestAcrossUserAndPIDNamespaces(t *testing.T) {
	needRoot(t)
	cfg := config(t)
	r := start(t, 0, order{Config: cfg, Task: "roots", CPU: 1})
	r.say("lent")
	inside := startIn(t, order{Config: cfg, Task: "inside", CPU: 1}, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: bob, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: bob, Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
	})
	inside.say("lent")
	waits := startIn(t, order{Config: cfg, Task: "waits", CPU: 1}, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: alice, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: alice, Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
	})
	if why := waits.say("waiting"); !strings.Contains(why, "2 of 2 are lent to roots (user root), inside ("+userName(bob)+")") {
		t.Errorf("it waits for %q", why)
	}
	s, err := open(t, cfg).Snapshot(bg)
	if err != nil || len(s.Leases) != 2 || s.Leases[1].Owner != bob || len(s.Waiting) != 1 || s.Waiting[0].Owner != alice {
		t.Errorf("snapshot is %+v (%v)", s, err)
	}
	inside.kill()
	waits.say("lent")
}

func TestOutside(t *testing.T) {
	for _, c := range []struct {
		name, uidMap string
		uid, want    uint32
		userns       bool
	}{
		{"the host", "         0          0 4294967295\n", 1000, 1000, false},
		{"rootless", "         0       1000          1\n         1     100000      65536\n", 0, 1000, true},
		{"a subordinate user", "         0       1000          1\n         1     100000      65536\n", 34, 100033, true},
		{"not mapped", "         0       1000          1\n", 7, overflowUID, true},
	} {
		if got, userns := outside([]byte(c.uidMap), c.uid); got != c.want || userns != c.userns {
			t.Errorf("%s: %d %v, want %d %v", c.name, got, userns, c.want, c.userns)
		}
	}
}

// TestReleaseOfRemovedFile: whoever releases a lease whose file something has removed leaves alone the file that another
// holder has put in its place.
func TestReleaseOfRemovedFile(t *testing.T) {
	l := open(t, config(t))
	a, err := l.Acquire(bg, Request{Task: "a", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Adopt(bg, a.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(a.entry.path); err != nil {
		t.Fatal(err)
	}
	if err := b.Refresh(bg); err != nil {
		t.Fatal(err)
	}
	a.Release()
	if s, err := l.Snapshot(bg); err != nil || len(s.Leases) != 1 {
		t.Errorf("b holds it still: %+v, %v", s.Leases, err)
	}
	b.Release()
	if s, err := l.Snapshot(bg); err != nil || len(s.Leases) != 0 {
		t.Errorf("released: %+v, %v", s.Leases, err)
	}
}

// TestUmask: all can read an entry, whatever the umask of who made it.
func TestUmask(t *testing.T) {
	l := open(t, config(t))
	for _, umask := range []int{0o022, 0o077, 0} {
		before := unix.Umask(umask)
		a, err := l.Acquire(bg, Request{Task: "a", CPU: 2})
		unix.Umask(before)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(a.entry.path); err != nil || fi.Mode() != 0o644 {
			t.Errorf("umask %#o: %v, %v", umask, fi.Mode(), err)
		}
		a.Release()
	}
}
