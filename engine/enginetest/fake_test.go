package enginetest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/berth-project/berth/engine/oci/initbin"
)

// fake is a simple engine: processes in a directory, with a pid and a mount namespace for the sake of cleaning
// up. It isolates nothing and limits nothing.
type fake struct {
	dir    string
	root   string // the image's root file system
	init   *os.File
	gpus   []berth.Node
	faults faults

	mu        sync.Mutex
	sandboxes map[string]*fakeSandbox
	leaked    []string
}

// faults are what can be planted.
type faults struct {
	dropLastByte, mergeStderr, streamsAreFiles, mixOutputs, stdinStays, appendsToFiles                    bool
	tailOffByOne, followEndsEarly, offsetIgnored, sinceIgnored, logsRemoved                               bool
	shiftCode, signalIsExit, codeIsSignal, forgetExit, wrongTimes, neverStartedIsExit                     bool
	neverStartedIsError, reasonOfStop, reasonOfTimeout, waitKills, waitHangs                              bool
	startTwice, acceptOtherSpec, acceptOtherSandbox, openAfresh, acceptAll, attachToAnything              bool
	stopFailsOnEnded, stopReturnsEarly, stopKills, stopIgnoresSignal, graceIsShort                        bool
	removeFailsTwice, removeKeepsEntry, removeLeavesRunning, closeKeepsEntry, closeFailsTwice             bool
	closeKeepsScratch, listForgetsLabels, statusStale, leaksSandbox, oneAtATime                           bool
	envSorted, envLeaks, noWorkdir, argsSplit                                                             bool
	volumeNotShared, otherVolume, noCopyUp, sharedRoot                                                    bool
	waitFailsOnStop, leavesRunning, followOfNoneHangs, stopWaitsForReaders, startsAfterClose, dropsUnread bool
	startForgets                                                                                          bool
	grantIgnored, grantsOfAll, grantUnchecked, grantsOfNonsense, envAsks, grantEnvIgnored                 bool
}

func newFake(t *testing.T, f faults) *enginetest.Env {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the fake engine mounts and changes its root")
	}
	e := &fake{dir: t.TempDir(), faults: f, sandboxes: map[string]*fakeSandbox{}}
	e.root = filepath.Join(e.dir, "image")
	var archive bytes.Buffer
	if err := enginetest.RootFS(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(e.root, 0o755); err != nil {
		t.Fatal(err)
	}
	untar := exec.CommandContext(t.Context(), "tar", "-xp", "-C", e.root)
	untar.Stdin = &archive
	if out, err := untar.CombinedOutput(); err != nil {
		t.Fatalf("unpack the image: %v: %s", err, out)
	}
	gpus := filepath.Join(e.dir, "gpus")
	if err := os.Mkdir(gpus, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if e.gpus, err = enginetest.FakeGPUs(gpus); err != nil {
		t.Fatal(err)
	}
	if e.init, err = initbin.Memfd(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, s := range e.sandboxes {
			s.kill()
		}
		e.init.Close()
	})
	return &enginetest.Env{
		Engine: e, Image: berth.Image{ID: "image"}, Dir: t.TempDir(), Lendable: e.gpus,
		Lacks: map[enginetest.Ability]string{
			enginetest.Users: "the fake has one", enginetest.Mounts: "the fake has volumes only", enginetest.Limits: "none in the fake",
			enginetest.Terminals: "none in the fake", enginetest.Bridge: "none in the fake", enginetest.Ports: "none in the fake", enginetest.Restart: "the fake lives in the test",
			enginetest.Hooks: "none in the fake", enginetest.Archives: "none in the fake", enginetest.Execs: "none in the fake", enginetest.UsageOf: "not measured",
		},
	}
}

func (e *fake) Info(context.Context) (berth.Info, error) { return berth.Info{Name: "fake"}, nil }

func (e *fake) Open(_ context.Context, spec berth.SandboxSpec) (berth.Sandbox, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.faults.acceptAll {
		if err := berth.CheckID(spec.ID); err != nil {
			return nil, err
		}
		if spec.Limits.Memory < 0 {
			return nil, fmt.Errorf("memory: %w", berth.ErrInvalid)
		}
		for _, v := range spec.Volumes {
			if !filepath.IsAbs(v.Path) {
				return nil, fmt.Errorf("volume: %w", berth.ErrInvalid)
			}
		}
	}
	lent, err := grant.Parse(spec.Grants)
	if err != nil && !e.faults.grantsOfNonsense {
		return nil, err
	}
	if s, ok := e.sandboxes[spec.ID]; ok {
		if equal(s.spec, spec) || e.faults.acceptOtherSandbox {
			if e.faults.openAfresh {
				for _, v := range spec.Volumes {
					os.RemoveAll(s.volume(v.Path))
				}
				return s, s.make()
			}
			return s, nil
		}
		return nil, berth.ErrConflict
	}
	s := &fakeSandbox{e: e, spec: spec, lent: lent, dir: filepath.Join(e.dir, "s-"+strings.ReplaceAll(spec.ID, "/", "_")), containers: map[string]*fakeContainer{}}
	if err := s.make(); err != nil {
		return nil, err
	}
	e.sandboxes[spec.ID] = s
	return s, nil
}

func equal(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Equal(x, y)
}

func (e *fake) Attach(_ context.Context, id string) (berth.Sandbox, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s, ok := e.sandboxes[id]; ok {
		return s, nil
	}
	if e.faults.attachToAnything {
		return &fakeSandbox{e: e, spec: berth.SandboxSpec{ID: id}}, nil
	}
	return nil, berth.ErrNotFound
}

func (e *fake) List(context.Context) ([]berth.Status, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []berth.Status
	for _, id := range e.leaked {
		all = append(all, berth.Status{Sandbox: id, State: berth.ContainerCreated})
	}
	for id, s := range e.sandboxes {
		all = append(all, berth.Status{Sandbox: id, State: berth.ContainerCreated, Labels: s.spec.Labels})
		for cid, c := range s.containers {
			st := berth.Status{Sandbox: id, Container: cid, State: berth.ContainerRunning, Labels: c.spec.Labels}
			if c.ended() {
				st.State, st.Exit = berth.ContainerEnded, &c.exit
			}
			if e.faults.statusStale {
				st.State, st.Exit = berth.ContainerRunning, nil
			}
			if e.faults.listForgetsLabels {
				st.Labels = nil
			}
			all = append(all, st)
		}
	}
	return all, nil
}

type fakeSandbox struct {
	e          *fake
	spec       berth.SandboxSpec
	lent       *grant.Set
	dir        string
	containers map[string]*fakeContainer // guarded by e.mu
	starting   sync.Mutex
	closed     bool // guarded by starting
}

func (s *fakeSandbox) make() error {
	for _, v := range s.spec.Volumes {
		if err := os.MkdirAll(s.volume(v.Path), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(s.volume(v.Path), 0o777|os.ModeSticky); err != nil {
			return err
		}
		if from := filepath.Join(s.e.root, v.Path); v.CopyUp && !s.e.faults.noCopyUp {
			if err := os.Chmod(s.volume(v.Path), 0o755); err != nil {
				return err
			}
			if out, err := exec.Command("cp", "-aT", from, s.volume(v.Path)).CombinedOutput(); err != nil {
				return fmt.Errorf("copy up: %w: %s", err, out)
			}
		}
	}
	return nil
}

func (s *fakeSandbox) volume(path string) string {
	return filepath.Join(s.dir, "volumes", strings.ReplaceAll(path, "/", "_"))
}

func (s *fakeSandbox) ID() string                             { return s.spec.ID }
func (s *fakeSandbox) DiskEnforcement() berth.DiskEnforcement { return berth.DiskNone }

func (s *fakeSandbox) Volume(_ context.Context, path string) (*os.Root, error) {
	for _, v := range s.spec.Volumes {
		if v.Path == path {
			if s.e.faults.otherVolume {
				return os.OpenRoot(s.dir)
			}
			return os.OpenRoot(s.volume(path))
		}
	}
	return nil, berth.ErrNotFound
}

func (s *fakeSandbox) Container(_ context.Context, id string) (berth.Container, error) {
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	if c, ok := s.containers[id]; ok {
		return c, nil
	}
	return nil, berth.ErrNotFound
}

func (s *fakeSandbox) Start(ctx context.Context, spec berth.StepSpec) (berth.Container, error) {
	s.starting.Lock()
	defer s.starting.Unlock()
	if s.closed && !s.e.faults.startsAfterClose {
		return nil, berth.ErrNotFound
	}
	if ctx.Err() != nil {
		if s.e.faults.startForgets {
			if c, err := s.start(spec); err == nil {
				<-c.done
			}
		}
		return nil, context.Cause(ctx)
	}
	if !s.e.faults.acceptAll {
		if err := checkStep(spec); err != nil {
			return nil, err
		}
	}
	if err := s.lent.Fits(nil); err != nil && !s.e.faults.grantUnchecked {
		return nil, err
	}
	s.e.mu.Lock()
	c, ok := s.containers[spec.ID]
	s.e.mu.Unlock()
	if ok && !s.e.faults.startTwice {
		if equal(c.spec, spec) || s.e.faults.acceptOtherSpec {
			return c, nil
		}
		return nil, berth.ErrConflict
	}
	c, err := s.start(spec)
	if err != nil {
		return nil, err
	}
	if s.e.faults.oneAtATime {
		select {
		case <-c.done:
		case <-time.After(3 * time.Second):
			c.kill()
		}
	}
	if c.neverStarted && s.e.faults.neverStartedIsError {
		return nil, berth.ErrNotFound
	}
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	s.containers[spec.ID] = c
	return c, nil
}

func checkStep(spec berth.StepSpec) error {
	if err := berth.CheckID(spec.ID); err != nil {
		return err
	}
	bad := len(spec.Command) == 0 && len(spec.Entrypoint) == 0 || spec.Seccomp != "" || len(spec.CapAdd) > 0 || len(spec.Ulimits) > 0 || spec.StopSignal == "NOSUCH"
	for _, m := range spec.Mounts {
		bad = bad || !filepath.IsAbs(m.Target)
	}
	for _, s := range append(slices.Clone(spec.Env), spec.Command...) {
		bad = bad || strings.HasPrefix(s, "=") || strings.Contains(s, "\x00")
	}
	if bad {
		return berth.ErrInvalid
	}
	return nil
}

func (s *fakeSandbox) kill() {
	for _, c := range s.containers {
		c.kill()
		<-c.done
	}
}

func (s *fakeSandbox) Close(context.Context) error {
	s.starting.Lock()
	defer s.starting.Unlock()
	s.closed = true
	s.e.mu.Lock()
	defer s.e.mu.Unlock()
	if _, ok := s.e.sandboxes[s.spec.ID]; !ok && s.e.faults.closeFailsTwice {
		return berth.ErrNotFound
	}
	s.kill()
	if !s.e.faults.closeKeepsScratch {
		for _, dir := range s.spec.Scratch {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	if s.e.faults.leaksSandbox {
		s.e.leaked = append(s.e.leaked, s.spec.ID)
	}
	if !s.e.faults.closeKeepsEntry {
		delete(s.e.sandboxes, s.spec.ID)
	}
	return os.RemoveAll(s.dir)
}

type fakeContainer struct {
	s            *fakeSandbox
	spec         berth.StepSpec
	dir, logs    string
	cmd          *exec.Cmd
	stdin        io.WriteCloser
	done         chan struct{}
	exit         berth.Exit // once done is closed
	neverStarted bool
	waits        int
	followers    sync.WaitGroup

	mu      sync.Mutex
	because berth.Reason // why the engine ended it
	times   []stamp
}

// stamp says when output from an offset on came.
type stamp struct {
	stderr bool
	offset int64
	at     time.Time
}

// mounts is run by a shell in the container's mount namespace: IMAGE DIR VOLUMES WORKDIR LENT COMMAND...
const mounts = `set -e; PATH=/usr/sbin:/usr/bin:/sbin:/bin; image=$1 dir=$2 volumes=$3 workdir=$4 lent=$5; shift 5
mount -t overlay overlay -o "lowerdir=$image,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
mkdir -p "$dir/root/proc" "$dir/root/dev"; mount -t proc proc "$dir/root/proc"; mount --bind /dev "$dir/root/dev"
if [ "$lent" ]; then
	mount -t tmpfs -o mode=755 tmpfs "$dir/root/dev"; cp -a /dev/null /dev/zero /dev/urandom "$dir/root/dev"; ln -s /proc/self/fd "$dir/root/dev"
fi
IFS=:; for n in $lent; do mkdir -p "$dir/root/dev/fake"; cp -a "${n%%=*}" "$dir/root${n#*=}"; done
IFS=:; for v in $volumes; do mkdir -p "$dir/root${v#*=}"; mount --bind "${v%%=*}" "$dir/root${v#*=}"; done
mkdir -p "$dir/root$workdir"; unset IFS PATH
exec /usr/sbin/chroot "$dir/root" /bin/env -i /bin/sh -c 'cd "$1"; IFS=; shift; exec /bin/env -i "$@"' sh "$workdir" "$@"`

func (s *fakeSandbox) start(spec berth.StepSpec) (*fakeContainer, error) {
	f := s.e.faults
	c := &fakeContainer{s: s, spec: spec, dir: filepath.Join(s.dir, "c-"+spec.ID), done: make(chan struct{})}
	if f.sharedRoot {
		c.dir = filepath.Join(s.dir, "c")
	}
	for _, d := range []string{"upper", "work", "root", "logs"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	c.logs = filepath.Join(c.dir, "logs-"+spec.ID)
	if spec.LogDir != "" && !f.logsRemoved {
		c.logs = spec.LogDir
	}
	if err := os.MkdirAll(c.logs, 0o755); err != nil {
		return nil, err
	}
	var volumes []string
	for _, v := range s.spec.Volumes {
		from := s.volume(v.Path)
		if f.volumeNotShared {
			from = filepath.Join(c.dir, "own", strings.ReplaceAll(v.Path, "/", "_"))
			if err := os.MkdirAll(from, 0o777); err != nil {
				return nil, err
			}
		}
		volumes = append(volumes, from+"="+v.Path)
	}
	workdir := spec.WorkingDir
	if workdir == "" || workdir == "." || f.noWorkdir {
		workdir = "/"
	}
	command := append(slices.Clone(spec.Entrypoint), spec.Command...)
	if f.argsSplit {
		command = strings.Fields(strings.Join(command, " "))
	}
	args := []string{"-c", mounts, "sh", s.e.root, c.dir, strings.Join(volumes, ":"), workdir, strings.Join(s.nodes(), ":")}
	args = append(args, c.environment()...)
	args = append(args, "/proc/self/fd/4")
	c.cmd = exec.Command("/bin/sh", append(args, command...)...)
	c.cmd.Env = []string{}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS}
	if f.leavesRunning {
		c.cmd.SysProcAttr.Cloneflags, c.cmd.WaitDelay = 0, time.Millisecond
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	c.cmd.ExtraFiles = []*os.File{w, s.e.init}
	if err := c.streams(); err != nil {
		return nil, err
	}
	c.exit.Started, c.exit.Runtime = time.Now(), "fake"
	if f.wrongTimes {
		c.exit.Started = c.exit.Started.Add(-time.Hour)
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	w.Close()
	record, err := initbin.ReadRecord(r)
	if err != nil {
		_ = c.cmd.Wait()
		b, _ := os.ReadFile(c.log(true))
		return nil, fmt.Errorf("start: %w: %s", err, b)
	}
	c.neverStarted = record.Kind == initbin.ExecFailed
	status := make(chan initbin.Record, 1)
	report, err := unix.Dup(int(r.Fd()))
	if err != nil {
		return nil, err
	}
	go func() {
		f := os.NewFile(uintptr(report), "report")
		defer f.Close()
		rec, _ := initbin.ReadRecord(f)
		status <- rec
	}()
	go c.reap(status)
	if spec.Timeout > 0 {
		go func() {
			select {
			case <-c.done:
			case <-time.After(spec.Timeout):
				_ = c.end(berth.TimedOut, spec.Grace)
			}
		}()
	}
	return c, nil
}

// nodes are the device nodes of the sandbox's grants, as HOST=CONTAINER.
func (s *fakeSandbox) nodes() (nodes []string) {
	lent := s.lent.Nodes
	switch {
	case s.e.faults.grantIgnored:
		return nil
	case s.e.faults.grantsOfAll && len(lent) > 0:
		lent = slices.Clone(s.e.gpus[:2])
		for i := range lent {
			lent[i].Container = fmt.Sprintf("/dev/fake/gpu%d", i)
		}
	}
	for _, n := range lent {
		nodes = append(nodes, n.Host+"="+n.Container)
	}
	return nodes
}

func (c *fakeContainer) environment() []string {
	f := c.s.e.faults
	env := []string{"PATH=/bin"}
	at := map[string]int{"PATH": 0}
	for _, kv := range slices.Concat(c.spec.Image.Config.Env, c.spec.Env) {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			env[i] = kv
			continue
		}
		at[k] = len(env)
		env = append(env, kv)
	}
	if set := c.s.lent; set.Edits != nil && !f.grantEnvIgnored {
		for _, kv := range set.Edits.Env {
			k, _, _ := strings.Cut(kv, "=")
			env = slices.DeleteFunc(env, func(o string) bool { return strings.HasPrefix(o, k+"=") })
			env = append(env, kv)
		}
	}
	if !f.envAsks {
		env = grant.Void(env)
	}
	if f.envSorted {
		slices.Sort(env)
	}
	if f.envLeaks {
		env = append(env, "BERTH_ENGINETEST_LEAK="+os.Getenv("BERTH_ENGINETEST_LEAK"))
	}
	return env
}

func (c *fakeContainer) log(stderr bool) string {
	if stderr {
		return filepath.Join(c.logs, "stderr")
	}
	return filepath.Join(c.logs, "stdout")
}

// sink is a log file that knows when what came, and keeps a copy.
type sink struct {
	c      *fakeContainer
	stderr bool
	file   *os.File
	copy   *os.File
	offset int64
	held   []byte // of the fault that drops the last byte
}

func (k *sink) Write(b []byte) (int, error) {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	n := len(b)
	if k.c.s.e.faults.dropLastByte {
		b = append(k.held, b...)
		k.held = slices.Clone(b[len(b)-1:])
		b = b[:len(b)-1]
	}
	k.c.times = append(k.c.times, stamp{k.stderr, k.offset, time.Now()})
	k.offset += int64(len(b))
	if k.copy != nil {
		_, _ = k.copy.Write(b)
	}
	if k.c.s.e.faults.dropsUnread && k.c.spec.Hold && k.offset > k.c.spec.LogLimit {
		return n, nil
	}
	if k.offset > 64<<20 { // a flood is not to fill the test's disk
		return n, nil
	}
	if _, err := k.file.Write(b); err != nil {
		return 0, err
	}
	return n, nil
}

func (c *fakeContainer) streams() error {
	f := c.s.e.faults
	inside := func(path string) string {
		for _, v := range c.s.spec.Volumes {
			if rest, ok := strings.CutPrefix(path, v.Path+"/"); ok {
				return filepath.Join(c.s.volume(v.Path), rest)
			}
		}
		return os.DevNull
	}
	var err error
	for _, stderr := range []bool{false, true} {
		path := c.log(stderr)
		if f.mixOutputs && !stderr {
			path = filepath.Join(c.s.dir, "all")
		}
		k := &sink{c: c, stderr: stderr}
		if k.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
			return err
		}
		copyTo := c.spec.Stdout
		if stderr {
			copyTo = c.spec.Stderr
		}
		if copyTo != "" {
			flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
			if f.appendsToFiles {
				flags = os.O_CREATE | os.O_WRONLY | os.O_APPEND
			}
			if k.copy, err = os.OpenFile(inside(copyTo), flags, 0o644); err != nil {
				return err
			}
		}
		var w io.Writer = k
		if f.streamsAreFiles {
			w = k.file
		}
		if stderr {
			c.cmd.Stderr = w
			if f.mergeStderr {
				c.cmd.Stderr = c.cmd.Stdout
			}
		} else {
			c.cmd.Stdout = w
		}
	}
	switch {
	case c.spec.Stdin != "":
		in, err := os.Open(inside(c.spec.Stdin))
		if err != nil {
			return err
		}
		c.cmd.Stdin = in
	case c.spec.OpenStdin:
		if c.stdin, err = c.cmd.StdinPipe(); err != nil {
			return err
		}
	case f.stdinStays:
		if c.stdin, err = c.cmd.StdinPipe(); err != nil {
			return err
		}
	}
	return nil
}

// reap waits for the end.
func (c *fakeContainer) reap(status <-chan initbin.Record) {
	_ = c.cmd.Wait()
	f := c.s.e.faults
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exit.Ended = time.Now()
	state := c.cmd.ProcessState
	rec := <-status
	ws := syscall.WaitStatus(rec.Value)
	switch {
	case c.neverStarted:
		c.exit.Reason, c.exit.Code, c.exit.Detail = berth.NeverStarted, state.ExitCode(), "it cannot be executed"
		if f.neverStartedIsExit {
			c.exit.Reason = berth.Exited
		}
	case rec.Kind != initbin.Ended: // pid 1 itself was killed
		c.exit.Reason, c.exit.Code, c.exit.Signal = berth.Signaled, 137, 9
	case ws.Signaled() && !f.signalIsExit:
		c.exit.Reason, c.exit.Code, c.exit.Signal = berth.Signaled, 128+int(ws.Signal()), int(ws.Signal())
	default:
		c.exit.Reason, c.exit.Code = berth.Exited, state.ExitCode()
		if f.codeIsSignal && c.exit.Code > 128 {
			c.exit.Reason, c.exit.Signal = berth.Signaled, c.exit.Code-128
		}
	}
	if c.because != "" {
		c.exit.Reason, c.exit.Detail = c.because, "ended by the engine"
	}
	if f.reasonOfStop && c.exit.Reason == berth.Stopped || f.reasonOfTimeout && c.exit.Reason == berth.TimedOut {
		c.exit.Reason = berth.Signaled
	}
	if f.shiftCode {
		c.exit.Code <<= 8
	}
	close(c.done)
}

func (c *fakeContainer) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (c *fakeContainer) kill() { _ = c.cmd.Process.Kill() }

func (c *fakeContainer) ID() string { return c.spec.ID }

func (c *fakeContainer) Wait(ctx context.Context) (berth.Exit, error) {
	f := c.s.e.faults
	done := ctx.Done()
	if f.waitHangs {
		done = nil
	}
	select {
	case <-c.done:
	case <-done:
		if f.waitKills {
			c.kill()
		}
		return berth.Exit{}, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.because == berth.Stopped && f.waitFailsOnStop {
		return berth.Exit{}, berth.ErrNotFound
	}
	if c.waits++; c.waits > 1 && f.forgetExit {
		return berth.Exit{Reason: berth.Lost, Code: -1}, nil
	}
	return c.exit, nil
}

// end ends the container as Stop does.
func (c *fakeContainer) end(why berth.Reason, grace time.Duration) error {
	f := c.s.e.faults
	if c.ended() {
		if f.stopFailsOnEnded {
			return berth.ErrConflict
		}
		return nil
	}
	c.mu.Lock()
	c.because = why
	c.mu.Unlock()
	sig := unix.SIGTERM
	if own, err := berth.ParseSignal(c.spec.StopSignal); err == nil && !f.stopIgnoresSignal {
		sig = own
	}
	if f.stopKills {
		sig = unix.SIGKILL
	}
	if f.graceIsShort {
		grace /= 10
	}
	if grace > 0 {
		_ = c.cmd.Process.Signal(sig)
	}
	if f.stopReturnsEarly {
		go func() { <-time.After(grace + 2*time.Second); c.kill() }()
		return nil
	}
	select {
	case <-c.done:
	case <-time.After(grace):
		c.kill()
		<-c.done
	}
	return nil
}

func (c *fakeContainer) Stop(ctx context.Context, grace time.Duration) error {
	err := c.end(berth.Stopped, grace)
	if c.s.e.faults.stopWaitsForReaders {
		read := make(chan struct{})
		go func() { c.followers.Wait(); close(read) }()
		select {
		case <-read:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return err
}

func (c *fakeContainer) Remove(context.Context) error {
	if !c.s.e.faults.removeLeavesRunning {
		c.kill()
		<-c.done
	}
	c.s.e.mu.Lock()
	defer c.s.e.mu.Unlock()
	if _, ok := c.s.containers[c.spec.ID]; !ok && c.s.e.faults.removeFailsTwice {
		return berth.ErrNotFound
	}
	if !c.s.e.faults.removeKeepsEntry {
		delete(c.s.containers, c.spec.ID)
	}
	return nil
}

func (c *fakeContainer) Signal(_ context.Context, sig syscall.Signal) error {
	if c.ended() {
		return berth.ErrConflict
	}
	return c.cmd.Process.Signal(sig)
}

func (c *fakeContainer) Address(context.Context) (string, error) { return "", berth.ErrNotFound }

func (c *fakeContainer) Stdin(context.Context) (io.WriteCloser, error) { return c.stdin, nil }

func (c *fakeContainer) Logs(ctx context.Context, o berth.LogOptions) (io.ReadCloser, error) {
	f := c.s.e.faults
	path := c.log(o.Stderr)
	if f.mixOutputs && !o.Stderr {
		path = filepath.Join(c.s.dir, "all")
	}
	if o.Follow && !f.followEndsEarly {
		return c.follow(ctx, path, o), nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(c.cut(b, o))), nil
}

func (c *fakeContainer) cut(b []byte, o berth.LogOptions) []byte {
	f := c.s.e.faults
	if o.Offset > 0 && !f.offsetIgnored {
		return b[min(o.Offset, int64(len(b))):]
	}
	if !o.Since.IsZero() && !f.sinceIgnored {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.times {
			if s.stderr == o.Stderr && s.at.After(o.Since) {
				return b[s.offset:]
			}
		}
		return nil
	}
	switch tail := o.Tail; {
	case tail < 0:
		return nil
	case tail > 0:
		if f.tailOffByOne {
			tail++
		}
		lines := bytes.SplitAfter(b, []byte("\n"))
		if len(lines[len(lines)-1]) == 0 {
			lines = lines[:len(lines)-1]
		}
		return bytes.Join(lines[max(0, len(lines)-tail):], nil)
	}
	return b
}

func (c *fakeContainer) follow(ctx context.Context, path string, o berth.LogOptions) io.ReadCloser {
	r, w := io.Pipe()
	c.followers.Go(func() {
		sent := int64(-1)
		for {
			over := c.ended() && (!c.neverStarted || !c.s.e.faults.followOfNoneHangs)
			b, err := os.ReadFile(path)
			if err != nil {
				w.CloseWithError(err)
				return
			}
			if sent < 0 {
				sent = int64(len(b) - len(c.cut(b, o)))
			}
			if _, err := w.Write(b[sent:]); err != nil {
				return
			}
			sent = int64(len(b))
			if over || ctx.Err() != nil {
				w.Close()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return r
}

var (
	_ berth.Engine      = (*fake)(nil)
	_ berth.Sandbox     = (*fakeSandbox)(nil)
	_ berth.Container   = (*fakeContainer)(nil)
	_ berth.LogReader   = (*fakeContainer)(nil)
	_ berth.Signaler    = (*fakeContainer)(nil)
	_ berth.StdinWriter = (*fakeContainer)(nil)
	_ berth.Addresser   = (*fakeContainer)(nil)
)
