package ledger

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// The tests run this test binary again as other processes and other users: order is what a child acquires.

const childEnv = "BERTH_LEDGER_TEST_CHILD"

type order struct {
	Config  Config
	Task    string
	CPU     float64
	Memory  int64
	NoWait  bool
	Devices []Device
	Log     string // appended "+TASK CPU\n" when lent, "-TASK CPU\n" before release, with Hold in between
	Hold    time.Duration
	Adopt   string
	Cgroup  string
	Shell   string // not an acquisition at all: run this script
	FlockOf string // not an acquisition at all: hold the lock of this directory
}

func TestMain(m *testing.M) {
	if s := os.Getenv(childEnv); s != "" {
		if err := child(s); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child says "waiting WHY" and "lent ID" on stdout, and releases at the end of stdin or of o.Hold.
func child(s string) error {
	var o order
	if err := json.Unmarshal([]byte(s), &o); err != nil {
		return err
	}
	if o.FlockOf != "" {
		return holdLock(o.FlockOf)
	}
	if o.Shell != "" {
		return exec.Command("sh", "-c", o.Shell).Run()
	}
	l, err := New(o.Config)
	if err != nil {
		return err
	}
	var lease *Lease
	if o.Adopt != "" {
		lease, err = l.Adopt(bg, o.Adopt)
	} else {
		lease, err = l.Acquire(bg, Request{
			Task: o.Task, CPU: o.CPU, Memory: o.Memory, NoWait: o.NoWait, Devices: o.Devices,
			Waiting: func(why string) { fmt.Println("waiting", why) },
		})
	}
	if err != nil {
		return err
	}
	defer lease.Release()
	if o.Cgroup != "" {
		h, err := Cgroup(o.Cgroup)
		if err != nil {
			return err
		}
		if err := lease.AddHolder(bg, h); err != nil {
			return err
		}
	}
	fmt.Println("lent", lease.ID())
	if o.Log != "" {
		return logHold(&o)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

func logHold(o *order) error {
	f, err := os.OpenFile(o.Log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(f, "+ %s %g\n", o.Task, o.CPU)
	time.Sleep(o.Hold)
	fmt.Fprintf(f, "- %s %g\n", o.Task, o.CPU)
	return nil
}

func holdLock(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	fmt.Println("lent lock")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// proc is a running child.
type proc struct {
	t     *testing.T
	task  string
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string
}

// start runs a child as the user uid; 0 is the user of the test.
func start(t *testing.T, uid uint32, o order) *proc {
	t.Helper()
	var attr *syscall.SysProcAttr
	if uid != 0 {
		attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	return startIn(t, o, attr)
}

func startIn(t *testing.T, o order, attr *syscall.SysProcAttr) *proc {
	t.Helper()
	s, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(s))
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &proc{t: t, task: o.Task, cmd: cmd, stdin: in, lines: make(chan string, 1000)}
	go func() {
		defer close(p.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			p.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() { p.kill() })
	return p
}

// say waits for a line that begins with prefix, and returns the rest of it.
func (p *proc) say(prefix string) string {
	p.t.Helper()
	timeout := time.After(20 * time.Second)
	var heard []string
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("child ended without %q; it said %q", prefix, heard)
			}
			if rest, ok := strings.CutPrefix(line, prefix+" "); ok {
				return rest
			}
			heard = append(heard, line)
		case <-timeout:
			p.t.Fatalf("child does not say %q; it said %q", prefix, heard)
		}
	}
}

// silent reports whether the child says nothing that begins with prefix for d.
func (p *proc) silent(prefix string, d time.Duration) {
	p.t.Helper()
	timeout := time.After(d)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok || strings.HasPrefix(line, prefix) {
				p.t.Fatalf("child says %q too early", line)
			}
		case <-timeout:
			return
		}
	}
}

func (p *proc) release() {
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
}

func (p *proc) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *proc) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// config is a ledger of its own with 2 CPUs and 2 GiB, in which every user may write.
func config(t *testing.T) Config {
	t.Helper()
	base := t.TempDir()
	for d := base; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	perUser := filepath.Join(base, "shm")
	if err := os.Mkdir(perUser, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(perUser, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	return Config{
		Dirs:       Dirs{Shared: filepath.Join(base, "run", "ledger"), PerUser: perUser},
		Capacity:   Capacity{CPU: 2, Memory: 2 << 30},
		StallAfter: time.Minute, // a busy machine may keep a process from giving signs of life
		Poll:       50 * time.Millisecond,
	}
}

func open(t *testing.T, cfg Config) *Ledger {
	t.Helper()
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: to run processes of two users")
	}
}

const (
	alice = 65534
	bob   = 65533
)

func isKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error is %v, and should be %v", err, kind)
	}
	for _, k := range []error{berth.ErrInvalid, berth.ErrNotFound, berth.ErrConflict, berth.ErrDenied, berth.ErrExhausted, berth.ErrUnavailable} {
		if !errors.Is(kind, k) && errors.Is(err, k) {
			t.Fatalf("error %v is of two kinds", err)
		}
	}
}
