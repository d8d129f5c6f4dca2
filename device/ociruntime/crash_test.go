package ociruntime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/device/devicetest"
)

// crashes are what a test has of its containers that kills.
type crashes struct {
	*place
	proof string // what the containers lock and write
	spec  oci.Spec
	usual time.Duration // how long it takes here to make a container that nothing befalls

	refused, killed, gone atomic.Int64
}

// TestRuntimeCrashes: many containers want few GPUs, and at any instant the runtime that makes, starts or removes one is
// killed, or what it has started, or the container. No GPU is ever held twice, and none is lost.
func TestRuntimeCrashes(t *testing.T) {
	const containers, processes, gpus = 120, 6, 4
	c := newCrashes(newPlace(t, devicetest.Options{NVIDIA: gpus}, "runc"))
	template := c.bundle("")
	c.spec = c.place.spec(template)
	t.Cleanup(c.clear)
	c.measure(func() error {
		id := c.id()
		defer func() { _ = c.remove(id) }()
		if err := c.prepare(template, id); err != nil {
			return err
		}
		out, err := c.runtime("create", "--bundle", template, id)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	var next atomic.Int64
	var wg sync.WaitGroup
	for i := range processes {
		dir := filepath.Join(c.dir, "bundle-"+strconv.Itoa(i))
		if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for next.Add(1) <= containers && !t.Failed() {
				if err := c.life(dir, c.id()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	c.judge()
}

func newCrashes(p *place) *crashes {
	p.t.Helper()
	c := &crashes{place: p, proof: filepath.Join(p.dir, "proof")}
	if err := os.Mkdir(c.proof, 0o700); err != nil {
		p.t.Fatal(err)
	}
	build := exec.CommandContext(p.t.Context(), "go", "build", "-o", filepath.Join(c.proof, "holder"), "./testdata/holder")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
	return c
}

// measure finds out what is usual.
func (c *crashes) measure(one func() error) {
	c.t.Helper()
	begin := time.Now()
	if err := one(); err != nil {
		c.t.Fatal(err)
	}
	c.usual = time.Since(begin)
}

// asks is what a container asks for.
func (c *crashes) asks() string {
	asked := rand.Perm(len(c.host.NVIDIA))[:1+rand.IntN(4)/3]
	return "NVIDIA_VISIBLE_DEVICES=" + strings.Trim(strings.ReplaceAll(fmt.Sprint(asked), " ", ","), "[]")
}

// judge looks at what the containers have left.
func (c *crashes) judge() {
	faults, _ := filepath.Glob(c.proof + "/fault-*")
	for _, f := range faults {
		text, err := os.ReadFile(f)
		c.t.Errorf("a container says: %s, %v", text, err)
	}
	ran, _ := filepath.Glob(c.proof + "/ran-*")
	c.t.Logf("%d containers ran, %d were refused; %d calls of the runtime were killed, and %d containers", len(ran), c.refused.Load(), c.killed.Load(), c.gone.Load())
	if len(ran) < 2 || c.refused.Load() == 0 || c.killed.Load()+c.gone.Load() == 0 {
		c.t.Error("the test saw nothing")
	}
	for _, g := range c.host.NVIDIA {
		for end := time.Now().Add(30 * time.Second); c.holder(g) != ""; time.Sleep(10 * time.Millisecond) {
			c.end() // what holds it may run on
			if time.Now().After(end) {
				c.t.Errorf("all containers are gone, and %s is held by %s", g.UUID, c.holder(g))
				break
			}
		}
	}
}

// end kills the commands that nobody knows of any more, and what waits to become one: of a daemon whose shim was killed, and
// then what was to clean up after that.
func (c *crashes) end() {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range procs {
		text, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(text), "/proof/holder\x00") && !strings.HasSuffix(string(text), "runc\x00init\x00") {
			continue
		}
		mounts, err := os.ReadFile(filepath.Join(filepath.Dir(f), "mountinfo"))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && pid > 0 && strings.Contains(string(mounts), strings.TrimPrefix(c.proof, os.TempDir())+" /proof ") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// life is that of one container. What may befall it by kills is no error.
func (c *crashes) life(dir, id string) error {
	if err := c.prepare(dir, id); err != nil {
		return err
	}
	out, err := c.call("create", "--bundle", dir, "--pid-file", filepath.Join(dir, "pid"), id)
	switch {
	case strings.Contains(out, "lent to oci-"):
		c.refused.Add(1)
	case err != nil && !errors.Is(err, errKilled):
		return fmt.Errorf("create: %w: %s", err, out)
	case err == nil:
		// What create has started may have been killed as that ended.
		if out, err := c.call("start", id); err != nil && !errors.Is(err, errKilled) && !strings.Contains(out, "a container that has stopped") {
			return fmt.Errorf("start: %w: %s", err, out)
		}
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // it runs
		if rand.IntN(2) == 0 {
			c.killContainer(dir)
		}
	}
	return c.remove(id)
}

// prepare writes the configuration of a bundle, of which there may be an edited one.
func (c *crashes) prepare(dir, id string) error {
	s := c.spec
	linux, process := *s.Linux, *s.Process
	linux.CgroupsPath = "/berth-oci-test/" + id
	process.Args = []string{"/proof/holder", "/proof", id}
	process.Env = append(slices.Clone(process.Env), c.asks())
	s.Linux, s.Process = &linux, &process
	s.Mounts = append(slices.Clone(s.Mounts), oci.Mount{Destination: "/proof", Source: c.proof, Type: "bind", Options: []string{"bind", "rw"}})
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for _, name := range []string{"pid", ".pid"} { // a runc that is killed as it writes the one leaves the other
		_ = os.Remove(filepath.Join(dir, name))
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

// errKilled says that a call of the runtime, or something that it started, was killed.
var errKilled = errors.New("killed")

// call calls berth as an OCI runtime and, one time of three, kills it or what it has started at some instant.
func (c *crashes) call(args ...string) (out string, err error) {
	file, err := os.CreateTemp(c.dir, "out") // a pipe the container would have, too
	if err != nil {
		return "", err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	cmd := exec.Command(c.self, append([]string{"oci-runtime", flagConfig, c.config, "--root", filepath.Join(c.dir, "state")}, args...)...)
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	killed := false
	select {
	case err = <-ended:
	case <-c.instant():
		killed = c.kill(cmd.Process.Pid)
		err = <-ended
	}
	text, bad := os.ReadFile(file.Name())
	if err != nil && killed {
		c.killed.Add(1)
		err = errKilled
	}
	return string(text), errors.Join(err, bad)
}

// instant is when a call is killed; never, two times of three.
func (c *crashes) instant() <-chan time.Time {
	if c.usual == 0 || rand.IntN(3) > 0 {
		return nil
	}
	return time.After(rand.N(c.usual))
}

// kill kills a process, or one of those that it has started.
func (c *crashes) kill(pid int) bool {
	family := append(familyOf(pid), pid, pid) // that itself more often
	return syscall.Kill(family[rand.IntN(len(family))], syscall.SIGKILL) == nil
}

// familyOf is a process and all that descend from it.
func familyOf(pid int) []int {
	family := []int{pid}
	for i := 0; i < len(family); i++ {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", family[i]))
		for _, t := range tasks {
			children, _ := os.ReadFile(t)
			for f := range strings.FieldsSeq(string(children)) {
				if n, err := strconv.Atoi(f); err == nil {
					family = append(family, n)
				}
			}
		}
	}
	return family
}

// killContainer kills a container's first process, whose number is that of its own only as long as the runtime has not
// been asked to remove it.
func (c *crashes) killContainer(dir string) {
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		return
	}
	if pid, err := strconv.Atoi(string(text)); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
		c.gone.Add(1)
	}
}

// remove removes a container, however often what does so is killed, and whatever of it the runtime does not know.
func (c *crashes) remove(id string) error {
	out, err := c.call("delete", "--force", id)
	for errors.Is(err, errKilled) {
		out, err = c.call("delete", "--force", id)
	}
	if err != nil {
		return fmt.Errorf("delete: %w: %s", err, out)
	}
	// A runtime that was killed while it made the container may have left what it has no record of.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		left := c.inside(id)
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("processes %v of container %s are still there", left, id)
		}
	}
}

// inside are the processes in a container's cgroup.
func (c *crashes) inside(id string) (pids []int) {
	files, _ := filepath.Glob("/sys/fs/cgroup/*/berth-oci-test/" + id + "/cgroup.procs")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for s := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(s); err == nil && pid != 0 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// clear removes the cgroups that killed runtimes have left.
func (c *crashes) clear() {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "/berth-oci-test/") {
			_ = os.Remove(path)
		}
		return nil
	})
}

// TestDockerCrashes does the same to containers of a daemon: while it makes and removes them, what it has started for them
// is killed at any instant, and containers too.
func TestDockerCrashes(t *testing.T) {
	const containers, clients, gpus = 30, 3, 4
	e := newDocker(t, devicetest.Options{NVIDIA: gpus})
	c := newCrashes(e.place)
	c.measure(func() error { return c.lifeInDocker(e, "crash-0") })
	var next atomic.Int64
	done := make(chan struct{})
	var killer, wg sync.WaitGroup
	killer.Go(func() { c.killShims(e.containerd, done) })
	for range clients {
		wg.Go(func() {
			for n := next.Add(1); n <= containers; n = next.Add(1) {
				if err := c.lifeInDocker(e, fmt.Sprintf("crash-%d", n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(done)
	killer.Wait()
	c.judge()
}

// lifeInDocker is that of one container of a daemon. What the daemon says of it may be of what was killed.
func (c *crashes) lifeInDocker(e *engine, name string) error {
	out, err := e.docker("run", "-d", "--name", name, "--network", "none", "--runtime", "berth", "-e", c.asks(), "-v", c.proof+":/proof", "bb", "/proof/holder", "/proof", name)
	switch {
	case strings.Contains(out, "lent to oci-"):
		c.refused.Add(1)
	case err == nil:
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond) // it runs
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := e.docker("rm", "-f", name)
		if err == nil || strings.Contains(out, "No such container") {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("remove %s: %w: %s", name, err, out)
		}
	}
}

// killShims kills, again and again, one of the processes that a containerd has started: its shims, the runtimes that these
// call, and what the runtimes have started.
func (c *crashes) killShims(socket string, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(c.usual/8 + rand.N(c.usual)):
		}
		shims := c.shims(socket)
		if len(shims) == 0 {
			continue
		}
		family := familyOf(shims[rand.IntN(len(shims))])
		victim := family[rand.IntN(len(family))]
		if rand.IntN(2) == 0 {
			victim = family[len(family)-1] // the container, where it is there already
		}
		name, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", victim))
		if syscall.Kill(victim, syscall.SIGKILL) != nil {
			continue
		}
		if strings.HasSuffix(name, "/holder") {
			c.gone.Add(1)
		} else {
			c.killed.Add(1)
		}
	}
}

// shims are the shims of a containerd.
func (c *crashes) shims(socket string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lines {
		line, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(line), "containerd-shim") || !strings.Contains(string(line), socket) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
