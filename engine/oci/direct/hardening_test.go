package direct

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
)

// runProgram runs steps as the only ones of a child.
func runProgram(t *testing.T, s *Starter, flags uint64, build func(*plan)) error {
	t.Helper()
	p := &plan{s: s, b: s.builders.take(), dirs: map[string]arg{}, spec: &specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{}}, bundle: &bundle.Bundle{}}
	defer p.close()
	build(p)
	p.b.doing("come to the end of", "the program")
	p.b.call(unix.SYS_EXIT_GROUP, 0)
	r := &request{netns: -1, prog: p.b.finish()}
	r.args.flags = flags | unix.CLONE_VM
	if err := s.plain.do(r); err != nil {
		t.Fatal(err)
	}
	if r.errno != 0 {
		t.Fatal(r.errno)
	}
	c := newChild(r.pid, int(r.pidfd))
	_, _ = c.wait()
	_ = c.close()
	return p.b.failure(r.prog.failed, r.prog.errno)
}

// Item 1: every descriptor but the container's own is closed before the root changes.
func TestHardening1DescriptorsAreClosedFirst(t *testing.T) {
	s := testStarter(t)
	host, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, err := unix.FcntlInt(host.Fd(), unix.F_SETFD, 0); err != nil { // not even close-on-exec
		t.Fatal(err)
	}
	err = runProgram(t, s, unix.CLONE_NEWNS, func(p *plan) {
		p.begin()
		p.b.doing("use", "the host's descriptor")
		p.b.call(unix.SYS_FCHDIR, arg(host.Fd()))
	})
	if !errors.Is(err, unix.EBADF) {
		t.Errorf("a descriptor of the host in the child: %v, want EBADF", err)
	}
	// And as a container sees it, with each way to execute a command.
	for _, init := range []bool{true, false} {
		got := run(t, s, "i=0; while [ $i -lt 1000 ]; do [ -e /proc/$$/fd/$i ] && echo $i; i=$((i+1)); done; true", func(b *bundle.Bundle) { b.Init = init })
		if got.stdout != "0\n1\n2\n" {
			t.Errorf("init %v: %v", init, got)
		}
	}
}

// Item 1: the working directory lies inside the root (CVE-2024-21626).
func TestHardening1WorkingDirectoryIsInside(t *testing.T) {
	s := testStarter(t)
	host, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, dir := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/../..", "/proc/1/fd/%d/etc"} {
		for fd := range 20 {
			b := testBundle(t, testSpec(t, "/bin/true"))
			b.Spec.Process.Cwd = fmt.Sprintf(dir, fd)
			if p, err := s.Start(t.Context(), b); err == nil {
				_, _ = p.Wait()
				_ = p.Close()
				if !strings.HasSuffix(dir, "..") {
					t.Errorf("a container started in %s", b.Spec.Process.Cwd)
				}
			}
		}
	}
	err = runProgram(t, s, unix.CLONE_NEWNS, func(p *plan) {
		b := p.b
		out := b.open(unix.SYS_OPENAT, atCwd, b.str("/"), unix.O_PATH)
		b.call(unix.SYS_CHROOT, b.str("/"+emptyDir))
		b.call(unix.SYS_FCHDIR, out)
		p.chdir(".")
	})
	if err == nil || err.Error() != "find within the root working directory .: invalid cross-device link" {
		t.Errorf("a working directory outside the root: %v", err)
	}
}

// Item 2: berth's own binary cannot be reached through /proc/self/exe (CVE-2019-5736).
func TestHardening2OwnBinaryIsOutOfReach(t *testing.T) {
	s := testStarter(t)
	image := t.TempDir()
	if err := os.WriteFile(image+"/trap", []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/exe", image+"/link"); err != nil {
		t.Fatal(err)
	}
	over := func(b *bundle.Bundle) {
		b.Root.Layers = append([]string{image}, b.Root.Layers...)
		b.Spec.Process.Env = append(b.Spec.Process.Env, trapVar+"=1")
		b.Spec.Linux.Seccomp = nil
		// berth's init that is made to execute itself does so again and again.
		b.Spec.Process.User = specs1000
		b.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: 20, Hard: 20}}
	}
	for _, init := range []bool{true, false} {
		for _, command := range []string{"/trap", "/link", "/proc/self/exe"} {
			b := testBundle(t, testSpec(t, command))
			b.Init = init
			over(b)
			got, err := runBundle(t, s, b)
			if strings.Contains(got.stdout, "berth's own") {
				t.Errorf("%s, init %v: %v, %v", command, init, got, err)
			}
		}
	}
	p := startIdle(t, s, over)
	for _, command := range []string{"/trap", "/link", "/proc/self/exe"} {
		proc := testSpec(t, command).Process
		proc.Env = append(proc.Env, trapVar+"=1")
		if got, err := execIn(t, p, proc); strings.Contains(got.stdout, "berth's own") {
			t.Errorf("exec of %s: %v, %v", command, got, err)
		}
	}
	// Neither pid 1 nor what it began as leads to berth.
	got, err := execIn(t, p, shell(t, "for f in exe fd/0 fd/3 root cwd; do readlink /proc/1/$f; cat /proc/1/$f; done; ls /proc/1/map_files; echo end"))
	if err != nil || got.stdout != "end\n" {
		t.Errorf("pid 1 from inside: %v, %v", got, err)
	}
}

// Item 3: what an image has in the place of a path that is to be hidden is not followed.
func TestHardening3PathsAreNotFollowed(t *testing.T) {
	s := testStarter(t)
	image := t.TempDir()
	for name, to := range map[string]string{"hidden": "/etc", "fixed": "/etc"} {
		if err := os.Symlink(to, image+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	proc := t.TempDir()
	if err := os.Symlink("/etc", proc+"/proc"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, layer string
		edit        func(*specs.Spec)
		want        string
	}{
		{"masked path is a link", image, func(sp *specs.Spec) { sp.Linux.MaskedPaths = []string{"/hidden"} }, "start container: hide /hidden: too many levels of symbolic links"},
		{"masked path behind a link", image, func(sp *specs.Spec) { sp.Linux.MaskedPaths = []string{"/hidden/passwd"} }, "start container: hide /hidden/passwd: too many levels of symbolic links"},
		{"read-only path is a link", image, func(sp *specs.Spec) { sp.Linux.ReadonlyPaths = []string{"/fixed"} }, "start container: make read-only /fixed: too many levels of symbolic links"},
		{"/proc is a link", proc, func(*specs.Spec) {}, "mount /proc: invalid: the image has a link there, to /etc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := testBundle(t, testSpec(t, "/bin/true"))
			layer := b.Root.Layers[0]
			b.Root.Layers = []string{tt.layer, layer}
			tt.edit(b.Spec)
			if _, err := s.Start(t.Context(), b); err == nil || err.Error() != tt.want {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

// Item 3: writes to procfs go to procfs, and to no mount upon it (CVE-2025-52881).
func TestHardening3ProcfsWritesAreVerified(t *testing.T) {
	s := testStarter(t)
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/self", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/self/oom_score_adj", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fake, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	real := s.proc
	s.proc = fake
	err = runProgram(t, s, 0, func(p *plan) { p.writeProc("set", "self/oom_score_adj", "1", true) })
	s.proc = real
	_ = unix.Close(fake)
	if !errors.Is(err, unix.EXDEV) {
		t.Errorf("a write to what is no procfs: %v, want EXDEV", err)
	}
	if data, err := os.ReadFile(dir + "/self/oom_score_adj"); err != nil || len(data) > 0 {
		t.Errorf("it was written: %q, %v", data, err)
	}
	for _, name := range []string{"self/root/etc/passwd", "self/exe", "self/cwd", "../etc/passwd"} {
		if err := runProgram(t, s, 0, func(p *plan) { p.writeProc("set", name, "1", true) }); err == nil {
			t.Errorf("%s could be opened", name)
		}
	}
}

// Item 5: an AppArmor profile is written after all else that the child had open is closed, and so its /proc must not be.
// Where there is no AppArmor, the kernel refuses the profile itself.
func TestHardening5ProfileIsWritten(t *testing.T) {
	s := testStarter(t)
	p := startIdle(t, s, nil)
	s.hasAppArmor = true
	confined := shell(t, "true")
	confined.ApparmorProfile = "no-such-profile"
	b := testBundle(t, testSpec(t))
	b.Spec.Process = confined
	_, started := s.Start(t.Context(), b)
	_, executed := execIn(t, p, confined)
	for what, err := range map[string]error{"start": started, "exec": executed} {
		if err == nil || errors.Is(err, unix.EBADF) || !strings.Contains(err.Error(), "set AppArmor profile no-such-profile") {
			t.Errorf("%s: %v; want what the kernel says of the profile", what, err)
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	err = runProgram(t, s, 0, func(p *plan) {
		p.spec.Process, p.bundle.Stdin, p.bundle.Stdout, p.bundle.Stderr = confined, null, null, null
		p.report, p.image = int(null.Fd()), int(null.Fd())
		if err := p.streams(); err != nil {
			t.Error(err)
		}
		p.writeProc("set", "self/oom_score_adj", "1", true)
		p.begin()
	})
	if err != nil {
		t.Errorf("a write to /proc after the streams: %v", err)
	}
}

// Item 3: a mount point that others change at the same time is never one outside the root.
func TestHardening3MountPointsUnderAttack(t *testing.T) {
	s := testStarter(t)
	volume, outside, src := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.Mkdir(volume+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, volume+"/link"); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, volume+"/dir", unix.AT_FDCWD, volume+"/link", unix.RENAME_EXCHANGE)
				runtime.Gosched()
			}
		}
	})
	for range 30 {
		b := testBundle(t, testSpec(t, "/bin/true"))
		b.Spec.Mounts = append(b.Spec.Mounts, bindMount(volume, "/volume"), bindMount(src, "/volume/dir/made/deep"))
		p, err := s.Start(t.Context(), b)
		if err != nil {
			continue // it was noticed
		}
		_, _ = p.Wait()
		_ = p.Close()
	}
	close(stop)
	wg.Wait()
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("something was made outside the root: %v, %v", left, err)
	}
}

// Item 4: a process that enters a container shares no memory with berth, and nobody can look into it.
func TestHardening4ExecIsOutOfReach(t *testing.T) {
	s := testStarter(t)
	p := startIdle(t, s, func(b *bundle.Bundle) {
		b.Spec.Process.Args = []string{"/bin/sh", "-c", `
while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do
  e=$(readlink $p/exe) && case $e in /bin/*|/memfd:berth-exec*) ;; *) echo "$p is $e: $(ls -l $p/fd $p/root $p/cwd)" >>/tmp/seen;; esac
done; done; touch /tmp/stopped; sleep 1000`}
	})
	for range 40 {
		if _, err := execIn(t, p, shell(t, "true")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := execIn(t, p, shell(t, "touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.01; done; cat /tmp/seen 2>/dev/null; true"))
	if err != nil || got.stdout != "" {
		t.Errorf("a process of the container saw: %v, %v", got, err)
	}
	pl := &plan{s: s, b: s.builders.take(), dirs: map[string]arg{}, spec: &specs.Spec{Linux: &specs.Linux{}, Process: shell(t, "true")}, bundle: &bundle.Bundle{}}
	defer pl.close()
	r := &request{}
	if err := p.(*Process).planExec(pl, r); err != nil {
		t.Fatal(err)
	}
	enter := slices.IndexFunc(pl.b.steps, func(s step) bool { return s.nr == unix.SYS_SETNS && s.mode == modeCall })
	dumps := slices.IndexFunc(pl.b.steps, func(s step) bool { return s.nr == unix.SYS_PRCTL && s.args[0] == unix.PR_SET_DUMPABLE })
	if r.args.flags&unix.CLONE_VM != 0 || dumps < 0 || dumps > enter {
		t.Errorf("flags %#x; dumps are forbidden at step %d, the container is entered at step %d", r.args.flags, dumps, enter)
	}
}

// Item 5 beyond what the tests against runc compare: what cannot be set is clamped, and said.
func TestHardening5ClampsAreNoted(t *testing.T) {
	s := testStarter(t)
	if s.caps.has(capSysResource) {
		s.caps &^= 1 << capSysResource
	}
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &own); err != nil {
		t.Fatal(err)
	}
	score, err := readInt("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	lower := score - 1
	want := []string{
		fmt.Sprintf("oom_score_adj is %d instead of %d: lowering it needs CAP_SYS_RESOURCE", score, lower),
		fmt.Sprintf("RLIMIT_MEMLOCK is 1:%d instead of 1:%d: raising it needs CAP_SYS_RESOURCE", own.Max, own.Max+1),
		"capabilities that berth itself lacks are left out: CAP_SYS_RESOURCE",
	}
	if own.Max == unix.RLIM_INFINITY || lower < -1000 {
		t.Fatalf("this host sets no limits that could be exceeded: %+v, %d", own, score)
	}
	got := run(t, s, "ulimit -H -l; cat /proc/self/oom_score_adj; grep CapBnd /proc/self/status", func(b *bundle.Bundle) {
		b.Spec.Process.OOMScoreAdj = &lower
		b.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: own.Max + 1}}
		b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_RESOURCE", "CAP_CHOWN"}}
	})
	if out := fmt.Sprintf("%d\n%d\nCapBnd:\t0000000000000001\n", own.Max/1024, score); got.stdout != out || !slices.Equal(got.notes, want) {
		t.Errorf("got %v\nnotes %q\nwant %s%q", got, got.notes, out, want)
	}
}

// fakeCgroup is a cgroup of v1 and one of v2, made for a test.
type fakeCgroup struct {
	v1    []*os.File
	dir   *os.File
	known bool // to PathV1
}

func (c *fakeCgroup) JoinV1() []*os.File { return c.v1 }
func (c *fakeCgroup) DirV2() *os.File    { return c.dir }
func (c *fakeCgroup) Path() string       { return "" }
func (c *fakeCgroup) Spread()            {}
func (c *fakeCgroup) PathV1(controllers string) (where string, known bool) {
	for _, f := range c.v1 {
		if name, ok := strings.CutPrefix(f.Name(), "/sys/fs/cgroup/"+strings.TrimPrefix(controllers, "name=")+"/"); ok {
			return "/" + filepath.Dir(name), c.known
		}
	}
	return "", c.known
}

// newFakeCgroup makes a cgroup in every hierarchy that is mounted.
func newFakeCgroup(t *testing.T) (cg *fakeCgroup, name string) {
	t.Helper()
	name = "berth-direct-" + strconv.Itoa(os.Getpid())
	cg = &fakeCgroup{}
	for _, pattern := range []string{"/sys/fs/cgroup/*/tasks", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if strings.Contains(f, "cpuset") {
				continue
			}
			dir := filepath.Join(filepath.Dir(f), name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for range 100 {
					if os.Remove(dir) == nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				t.Errorf("%s cannot be removed", dir)
			})
			if strings.HasSuffix(f, "tasks") {
				tasks, err := os.OpenFile(dir+"/tasks", os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = tasks.Close() })
				cg.v1 = append(cg.v1, tasks)
			} else if cg.dir, err = os.Open(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() {
		if cg.dir != nil {
			_ = cg.dir.Close()
		}
	})
	if len(cg.v1) == 0 && cg.dir == nil {
		t.Fatal("no cgroup hierarchy is mounted at /sys/fs/cgroup")
	}
	return cg, name
}

// Item 6: cgroups and the network namespace are entered before user code runs.
func TestHardening6JoinsComeFirst(t *testing.T) {
	s := testStarter(t)
	cg, name := newFakeCgroup(t)
	joined := len(cg.v1)
	if cg.dir != nil {
		joined++
	}
	netns, inode := newNetNS(t)
	var p bundle.Process
	got := run(t, s, fmt.Sprintf("grep -c /%s$ /proc/self/cgroup; readlink /proc/self/ns/net; cat /proc/net/dev | grep -c :", name), func(b *bundle.Bundle) {
		b.Cgroup, b.NetNS = cg, netns
		b.Spec.Linux.Namespaces = slices.DeleteFunc(b.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	})
	if want := fmt.Sprintf("%d\n%s\n1\n", joined, inode); got.stdout != want {
		t.Errorf("got %v\nwant %s", got, want)
	}
	// In a cgroup namespace of its own the container sees nothing of where it is; what is executed in it is there, too.
	p = startIdle(t, s, func(b *bundle.Bundle) { b.Cgroup, b.NetNS = cg, netns })
	e, err := p.Exec(t.Context(), &bundle.Exec{Process: testSpec(t, "sleep", "1000").Process})
	if err != nil {
		t.Fatal(err)
	}
	for what, pid := range map[string]int{"pid 1": p.Pid(), "exec": e.Pid()} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), "/"+name+"\n"); n != joined {
			t.Errorf("%s is in %d of %d cgroups:\n%s", what, n, joined, data)
		}
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || link != inode {
			t.Errorf("%s is in network namespace %s, %v; want %s", what, link, err, inode)
		}
	}
	got, err = execIn(t, p, shell(t, "grep -c ':/$' /proc/self/cgroup; grep -vc ':/$' /proc/self/cgroup"))
	if err != nil || !strings.HasSuffix(got.stdout, "\n0\n") {
		t.Errorf("cgroups as the container sees them: %v, %v", got, err)
	}
	_ = e.Kill()
	_, _ = e.Wait()
}

// Item 6: a container that its memory limit does not let start fails; nobody else is killed for it, though the
// child shares berth's memory.
func TestHardening6NoMemoryToStart(t *testing.T) {
	s := testStarter(t)
	cg, _ := newFakeCgroup(t)
	limited := false
	for _, f := range cg.v1 {
		limit := filepath.Dir(f.Name()) + "/memory.limit_in_bytes"
		if os.WriteFile(limit, []byte("4096"), 0) == nil {
			limited = true
		}
	}
	if cg.dir != nil && !limited {
		limited = os.WriteFile(cg.dir.Name()+"/memory.max", []byte("4096"), 0) == nil
	}
	if !limited {
		t.Fatal("no cgroup limits memory")
	}
	for _, init := range []bool{true, false} {
		b := testBundle(t, testSpec(t, "/bin/true"))
		b.Cgroup, b.Init = cg, init
		p, err := s.Start(t.Context(), b)
		if err == nil {
			st, _ := p.Wait()
			_ = p.Close()
			if st.Code == 0 && st.Signal == 0 {
				t.Errorf("init %v: a container ran in 4 KiB", init)
			}
			continue
		}
		if !errors.Is(err, berth.ErrExhausted) {
			t.Errorf("init %v: %v, want ErrExhausted", init, err)
		}
	}
}

// newNetNS makes a network namespace with its loopback interface up.
func newNetNS(t testing.TB) (f *os.File, link string) {
	t.Helper()
	type result struct {
		f    *os.File
		link string
		err  error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			r.link, _ = os.Readlink("/proc/thread-self/ns/net")
			r.f, r.err = os.Open("/proc/thread-self/ns/net")
		}
		ch <- r
	}()
	r := <-ch
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.f.Close() })
	return r.f, r.link
}

// victim starts a container, says its pid, and waits to be killed.
func victim(layer string) {
	s, err := New(Config{})
	if err != nil {
		panic(err)
	}
	dir, err := os.MkdirTemp("", "berth-direct-victim-")
	if err != nil {
		panic(err)
	}
	b := &bundle.Bundle{Dir: dir, Init: true, Root: bundle.Root{Layers: []string{layer}, Volatile: true}, Spec: &specs.Spec{
		Process: &specs.Process{Args: []string{"sleep", "1000"}},
		Mounts:  []specs.Mount{{Destination: "/dev", Type: "tmpfs"}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}},
	}}
	var pids []int
	for i := range 3 {
		if i == 1 { // and one whose root can be written
			b.Root.Upper, b.Root.Work = dir+"/u", dir+"/w"
			if err := errors.Join(os.Mkdir(b.Root.Upper, 0o755), os.Mkdir(b.Root.Work, 0o755)); err != nil {
				panic(err)
			}
		} else {
			b.Root.Upper = ""
		}
		p, err := s.Start(testContext, b)
		if err != nil {
			panic(err)
		}
		pids = append(pids, p.Pid())
		e, err := p.Exec(testContext, &bundle.Exec{Process: &specs.Process{Args: []string{"sleep", "1000"}}})
		if err != nil {
			panic(err)
		}
		pids = append(pids, e.Pid())
	}
	fmt.Fprintln(os.Stdout, dir, pids)
	time.Sleep(time.Hour)
}

// Item 7: the container ends with whoever started it.
func TestHardening7EndsWithItsParent(t *testing.T) {
	needRoot(t)
	layer, err := busyboxLayer()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimVar+"="+layer)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(strings.NewReplacer("[", "", "]", "").Replace(line))
	defer os.RemoveAll(f[0])
	if len(f) != 7 {
		t.Fatalf("the victim said %q", line)
	}
	for _, pid := range f[1:] {
		for i := 0; ; i++ {
			state, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil || strings.Contains(string(state), ") Z ") {
				break
			}
			if i == 200 {
				t.Errorf("process %s runs on: %s", pid, state)
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// Item 7: that its parent lives is checked after the child has asked to die with it.
func TestHardening7ParentIsChecked(t *testing.T) {
	s := testStarter(t)
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	self := s.self
	s.self = dead
	err = runProgram(t, s, 0, func(p *plan) { p.dieWithParent() })
	s.self = self
	_ = unix.Close(dead)
	if err == nil || err.Error() != "find berth alive: no such process" {
		t.Errorf("with a dead parent: %v", err)
	}
	if err := runProgram(t, s, 0, func(p *plan) { p.dieWithParent() }); err != nil {
		t.Errorf("with a living parent: %v", err)
	}
}

// Item 8: the root holds no mount of the host, and no path of it can be named.
func TestHardening8NothingOfTheHost(t *testing.T) {
	s := testStarter(t)
	own := t.TempDir()
	want := `/ / overlay
/ /proc proc
/ /dev tmpfs
/ /dev/pts devpts
/ /sys sysfs
/ /dev/mqueue mqueue
/ /dev/shm tmpfs
/bus /proc/bus proc
/fs /proc/fs proc
/irq /proc/irq proc
/sys /proc/sys proc
/..
`
	for _, hooks := range []*specs.Hooks{nil, {CreateContainer: []specs.Hook{{Path: "/bin/true"}}}} {
		got := run(t, s, "cut -d' ' -f4,5,8 /proc/self/mountinfo | grep -v sysrq; ls -d "+own+" /../../../work /.. 2>/dev/null; ls /r /e /null 2>/dev/null", func(b *bundle.Bundle) {
			b.Spec.Linux.MaskedPaths, b.Spec.Hooks = nil, hooks
		})
		if got.stdout != want {
			t.Errorf("hooks %v: got %s\nwant %s", hooks, got.stdout, want)
		}
	}
}

// Item 8: no way out of the root leads to the host. Whoever may mount can take away the root itself, here as
// in runc's containers, and finds the forking thread's empty file system.
func TestHardening8NoWayOut(t *testing.T) {
	s := testStarter(t)
	probe, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	const inside = "<nil> bin dev etc home probe proc root sys tmp"
	out := func(setns, umount string) map[string]string {
		return map[string]string{"chroot": inside, "setns": setns, "umount 1": umount, "umount 2": umount, "umount 3": umount}
	}
	for _, tt := range []struct {
		name  string
		caps  []string
		hooks *specs.Hooks
		want  map[string]string
	}{
		{"Docker's capabilities", nil, nil, out("operation not permitted", "operation not permitted")},
		{"and those to mount and enter", []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}, nil, out(inside, "invalid argument")},
		{"Docker's capabilities, and hooks", nil, &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}, out("operation not permitted", "operation not permitted")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := testBundle(t, testSpec(t, "/probe/probe", "escape"))
			b.Spec.Mounts = append(b.Spec.Mounts, bindMount(filepath.Dir(probe), "/probe", "ro"))
			caps := append(tt.caps, dockerCaps...)
			b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			b.Spec.Linux.Seccomp, b.Spec.Hooks = nil, tt.hooks
			o, err := runBundle(t, s, b)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for line := range strings.Lines(o.stdout) {
				way, rest, _ := strings.Cut(strings.TrimSpace(line), ": ")
				got[way] = rest
			}
			if !maps.Equal(got, tt.want) || len(o.notes) > 0 {
				t.Errorf("got %v %q\nwant %v", o, o.notes, tt.want)
			}
		})
	}
}

// Where the kernel makes no user namespaces, a root cannot be locked: the note says so.
func TestHardening8NoLock(t *testing.T) {
	s := testStarter(t)
	s.sealed.open = &lockError{unix.ENOSPC}
	caps := []string{"CAP_SYS_ADMIN"}
	for _, admin := range []bool{false, true} {
		b := testBundle(t, testSpec(t, "/bin/true"))
		if admin {
			b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps}
		}
		o, err := runBundle(t, s, b)
		if err != nil {
			t.Fatal(err)
		}
		if noted := strings.Contains(fmt.Sprint(o.notes), "could not be locked"); noted != admin {
			t.Errorf("admin %v: notes are %q", admin, o.notes)
		}
	}
}

// Item 9: a user namespace is mapped before any mount is made.
func TestHardening9MappedBeforeMounts(t *testing.T) {
	s := testStarter(t)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 1000}, {ContainerID: 1000, HostID: 100000, Size: 1000}}
	edit := func(b *bundle.Bundle) {
		b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = ids, ids
		b.Spec.Process.User = specs1000
	}
	got := run(t, s, "cat /proc/self/uid_map | tr -s ' '; id -u; touch /tmp/x 2>/dev/null || echo denied; echo e >/dev/stderr; cat /proc/self/setgroups", func(b *bundle.Bundle) { edit(b) })
	if want := " 0 0 1000\n 1000 100000 1000\n1000\ndenied\nallow\n"; got.stdout != want || got.stderr != "e\n" {
		t.Errorf("got %v\nwant %s", got, want)
	}
	b := testBundle(t, testSpec(t, "/bin/true"))
	edit(b)
	p := &plan{s: s, spec: b.Spec, bundle: b, b: s.builders.take(), dirs: map[string]arg{}, threadNet: -1, userNS: true, flags: unix.CLONE_NEWUSER}
	defer p.close()
	layer, err := os.OpenFile(b.Root.Layers[0], unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer layer.Close()
	if err := p.start(t.Context(), layer); err != nil {
		t.Fatal(err)
	}
	first := func(verb string) int {
		return slices.IndexFunc(p.b.whats, func(w what) bool { return strings.HasPrefix(w.verb, verb) })
	}
	if m, w := first("mount"), first("wait for the mapping"); w < 0 || m < w {
		t.Errorf("the first mount is step %d, the mapping step %d", m, w)
	}
	b.Spec.Linux.UIDMappings = append(ids, ids...) // overlapping
	if _, err := s.Start(t.Context(), b); err == nil || !strings.Contains(err.Error(), "user namespace: map ids") {
		t.Errorf("mappings that the kernel refuses: %v", err)
	}
}

// TestCheck: what a start does not heed it refuses, by name.
func TestCheck(t *testing.T) {
	s := testStarter(t)
	tests := []struct {
		name string
		edit func(*specs.Spec)
		kind error
		says string
	}{
		{"nothing odd", func(*specs.Spec) {}, nil, ""},
		{"hooks before the command", func(sp *specs.Spec) {
			one := []specs.Hook{{Path: "/x"}}
			sp.Hooks = &specs.Hooks{Prestart: one, CreateRuntime: one, CreateContainer: one} //nolint:staticcheck // deprecated, and part of CDI
		}, nil, ""},
		{"hooks in the container", func(sp *specs.Spec) { sp.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/x"}}} }, berth.ErrUnsupported, "hooks.startContainer"},
		{"hooks after the start", func(sp *specs.Spec) { sp.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/x"}}} }, berth.ErrUnsupported, "hooks.poststart"},
		{"hooks after the end", func(sp *specs.Spec) { sp.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} }, berth.ErrUnsupported, "hooks.poststop"},
		{"a hook by name", func(sp *specs.Spec) { sp.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "x"}}} }, berth.ErrInvalid, "hooks.createContainer"},
		{"a hook without time", func(sp *specs.Spec) {
			sp.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/x", Timeout: new(int)}}}
		}, berth.ErrInvalid, "timeout"},
		{"hooks in a user namespace", func(sp *specs.Spec) {
			sp.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/x"}}}
			sp.Linux.Namespaces = append(sp.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			sp.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
			sp.Linux.GIDMappings = sp.Linux.UIDMappings
		}, berth.ErrUnsupported, "hooks"},
		{"hooks that are empty", func(sp *specs.Spec) { sp.Hooks = &specs.Hooks{} }, nil, ""},
		{"SELinux", func(sp *specs.Spec) { sp.Process.SelinuxLabel = "x" }, berth.ErrUnsupported, "process.selinuxLabel"},
		{"AppArmor", func(sp *specs.Spec) { sp.Process.ApparmorProfile = "x" }, berth.ErrUnsupported, "process.apparmorProfile"},
		{"AppArmor unconfined", func(sp *specs.Spec) { sp.Process.ApparmorProfile = "unconfined" }, nil, ""},
		{"scheduler", func(sp *specs.Spec) { sp.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch} }, berth.ErrUnsupported, "process.scheduler.policy"},
		{"personality", func(sp *specs.Spec) { sp.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }, berth.ErrUnsupported, "linux.personality.domain"},
		{"time namespace", func(sp *specs.Spec) {
			sp.Linux.Namespaces = append(sp.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		}, berth.ErrUnsupported, `"time"`},
		{"time offsets", func(sp *specs.Spec) { sp.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}} }, berth.ErrUnsupported, "linux.timeOffsets"},
		{"Intel RDT", func(sp *specs.Spec) { sp.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"} }, berth.ErrUnsupported, "linux.intelRdt.closID"},
		{"idmapped mount", func(sp *specs.Spec) { sp.Mounts[0].UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, berth.ErrUnsupported, "mounts.[].uidMappings"},
		{"joined pid namespace", func(sp *specs.Spec) { sp.Linux.Namespaces[0].Path = "/proc/1/ns/pid" }, berth.ErrUnsupported, "pid"},
		{"host's pid namespace", func(sp *specs.Spec) { sp.Linux.Namespaces = sp.Linux.Namespaces[1:] }, berth.ErrUnsupported, "pid"},
		{"mount type", func(sp *specs.Spec) { sp.Mounts[1].Type = "nfs" }, berth.ErrUnsupported, `type "nfs"`},
		{"mount option", func(sp *specs.Spec) { sp.Mounts[1].Options = []string{"tmpcopyup"} }, berth.ErrUnsupported, `option "tmpcopyup"`},
		{"relative mount", func(sp *specs.Spec) { sp.Mounts[1].Destination = "dev" }, berth.ErrInvalid, "dev"},
		{"mount over the root", func(sp *specs.Spec) { sp.Mounts[1].Destination = "/x/.." }, berth.ErrInvalid, "/x/.."},
		{"capability", func(sp *specs.Spec) { sp.Process.Capabilities.Bounding = []string{"CAP_X"} }, berth.ErrUnsupported, "CAP_X"},
		{"limit", func(sp *specs.Spec) { sp.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, berth.ErrUnsupported, "RLIMIT_X"},
		{"the host's sysctl", func(sp *specs.Spec) { sp.Linux.Sysctl = map[string]string{"kernel.panic": "1"} }, berth.ErrDenied, "kernel.panic"},
		{"sysctl that climbs", func(sp *specs.Spec) { sp.Linux.Sysctl = map[string]string{"net/../kernel/panic": "1"} }, berth.ErrInvalid, ".."},
		{"no command", func(sp *specs.Spec) { sp.Process.Args = nil }, berth.ErrInvalid, "process.args"},
		{"zero byte", func(sp *specs.Spec) { sp.Process.Args = []string{"a\x00b"} }, berth.ErrInvalid, "zero byte"},
		{"cgroups without a namespace", func(sp *specs.Spec) {
			sp.Linux.Namespaces = sp.Linux.Namespaces[:5]
			sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup"})
		}, berth.ErrUnsupported, "cgroup namespace"},
		{"another system", func(sp *specs.Spec) { sp.Windows = &specs.Windows{LayerFolders: []string{"x"}} }, berth.ErrUnsupported, "windows.layerFolders"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sp := testSpec(t, "/bin/true")
			tt.edit(sp)
			err := s.Check(sp)
			if !errors.Is(err, tt.kind) || tt.kind == nil && err != nil || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v with %q", err, tt.kind, tt.says)
			}
		})
	}
}
