package initbin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/initbin"
)

// The test binary is also the command that init runs, when its environment says so.
const helperEnv = "BERTH_INITBIN_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "show":
		_ = json.NewEncoder(os.Stdout).Encode([][]string{os.Args, os.Environ()})
	case "signals":
		signals()
	case "orphans":
		orphans()
	}
}

// signals says which signals it gets, until KILL.
func signals() {
	c := make(chan os.Signal, 100)
	signal.Notify(c)
	fmt.Fprintln(os.Stdout, "ready")
	for s := range c {
		fmt.Fprintln(os.Stdout, int(s.(syscall.Signal)))
	}
}

// orphans makes processes whose parents have ended, says so, and waits for the end of standard input.
func orphans() {
	for range 20 {
		if err := exec.Command("sh", "-c", "(sleep 0.05) & exit 0").Run(); err != nil {
			fmt.Fprintln(os.Stdout, err)
		}
	}
	fmt.Fprintln(os.Stdout, "ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// process is a started init.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	report *os.File
	out    *bytes.Buffer
}

// options say how init is started; the zero value: with a report pipe, in a pid namespace of its own.
type options struct {
	noReport bool
	notPid1  bool
	env      []string // nil is this process's
	dir      string
	stdin    *os.File
	stdout   *os.File // nil is process.out
	attr     func(*exec.Cmd)
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a pid namespace is made")
	}
}

func start(t *testing.T, o options, args ...string) *process {
	t.Helper()
	if !o.notPid1 {
		needsRoot(t)
	}
	image, err := initbin.Memfd()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, out: &bytes.Buffer{}}
	p.cmd = exec.CommandContext(t.Context(), fmt.Sprintf("/proc/self/fd/%d", image.Fd()))
	p.cmd.Args = append([]string{initbin.Arg0}, args...)
	p.cmd.Env, p.cmd.Dir, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = o.env, o.dir, o.stdin, p.out, p.out
	if o.stdout != nil {
		p.cmd.Stdout, p.cmd.Stderr = o.stdout, o.stdout
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !o.notPid1 {
		p.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
	}
	var w *os.File
	if !o.noReport {
		if p.report, w, err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		p.cmd.ExtraFiles = []*os.File{w}
	}
	if o.attr != nil {
		o.attr(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	image.Close()
	if w != nil {
		w.Close()
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		if p.report != nil {
			p.report.Close()
		}
	})
	return p
}

// exit waits for the end, and returns the exit code.
func (p *process) exit() int {
	p.t.Helper()
	err := p.cmd.Wait()
	if e := (*exec.ExitError)(nil); err != nil && !errors.As(err, &e) {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// records reads the report to its end.
func (p *process) records() []initbin.Record {
	p.t.Helper()
	var rs []initbin.Record
	for {
		r, err := initbin.ReadRecord(p.report)
		if errors.Is(err, io.EOF) {
			return rs
		}
		if err != nil {
			p.t.Fatal(err)
		}
		rs = append(rs, r)
	}
}

// executed reads the first record, which must say that the command runs.
func (p *process) executed() {
	p.t.Helper()
	if r, err := initbin.ReadRecord(p.report); err != nil || r.Kind != initbin.Executed {
		p.t.Fatalf("record %+v, error %v; want one of kind Executed", r, err)
	}
}

// children are the pids of init's children, as this process sees them.
func (p *process) children() []int {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.cmd.Process.Pid, p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	var pids []int
	for f := range bytes.FieldsSeq(b) {
		n, err := strconv.Atoi(string(f))
		if err != nil {
			p.t.Fatal(err)
		}
		pids = append(pids, n)
	}
	slices.Sort(pids)
	return pids
}

// eventually fails unless what becomes true within some seconds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 500 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within 5 s: %s", what)
}

func helper(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}
