package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
)

// bench is a data directory in which processes of berth are run, signaled and killed.
type bench struct {
	t       *testing.T
	dir     string
	data    string
	program string
	uid     uint32   // whose processes they are
	groups  []uint32 // which they have beside the user's own
	env     []string
}

func newBench(t *testing.T, env ...string) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the tasks run in cgroups")
	}
	b := &bench{t: t, dir: t.TempDir(), program: "/proc/self/exe", env: env}
	b.data = filepath.Join(b.dir, "data")
	archive, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endMonitor(b.data) })
	cmd := b.berth("image", "import", "-", "bb")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return b
}

// berth is a process of berth that is not started.
func (b *bench) berth(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(b.t.Context(), b.program, args...)
	cmd.Env = append(os.Environ(), asBerth+"=1", noSleep, "HOME="+b.dir, "XDG_CONFIG_HOME=", "XDG_DATA_HOME=")
	cmd.Env = append(cmd.Env, b.env...)
	cmd.Dir = b.dir
	if b.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: b.uid, Gid: b.uid, Groups: b.groups}}
	} else {
		cmd.Env = append(cmd.Env, "BERTH_DATA_DIR="+b.data)
	}
	return cmd
}

// output runs berth to its end and returns what it wrote, with its exit code.
func (b *bench) output(args ...string) (out string, code int) {
	b.t.Helper()
	raw, err := b.berth(args...).CombinedOutput()
	raw = lasts.ReplaceAll(raw, nil)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(raw), exit.ExitCode()
	} else if err != nil {
		b.t.Fatal(err)
	}
	return string(raw), 0
}

// start starts a task and waits until it has written a line.
func (b *bench) start(args ...string) (cmd *exec.Cmd, rest func() string, stderr *bytes.Buffer) {
	b.t.Helper()
	cmd = b.berth(append([]string{"run"}, args...)...)
	stderr = &bytes.Buffer{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "up\n" {
		_ = cmd.Wait()
		b.t.Fatalf("%q, %v: %s", line, err, stderr)
	}
	return cmd, func() string {
		raw, _ := io.ReadAll(r)
		return string(raw)
	}, stderr
}

// clean checks that soon nothing is left of tasks but their records and logs: within two seconds, on a machine that has
// nothing else to do.
func (b *bench) clean() {
	b.t.Helper()
	var left []string
	most := 9 * time.Second // before what comes later, anyway, removes it
	if slices.Contains(b.env, "BERTH_ENGINE=docker") {
		most = daemonsTime
	}
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left, _ = filepath.Glob(filepath.Join(b.data, "sandboxes", "*"))
		if len(left) == 0 && len(b.tasks()) == 0 {
			return
		}
	}
	b.t.Errorf("left over: %q, processes %v", left, b.tasks())
}

// tasks are the processes of the tasks of this data directory: others may test the same on this host.
func (b *bench) tasks() (pids []int) {
	instance, _ := os.ReadFile(filepath.Join(b.data, "instance"))
	for _, pid := range processes("in-the-task") {
		cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		st, serr := os.Stat(fmt.Sprintf("/proc/%d", pid))
		if err != nil || serr != nil {
			continue // it has ended
		}
		// An ordinary user's have no cgroup of berth's on v1.
		if bytes.Contains(cgroups, bytes.TrimSpace(instance)) || b.uid != 0 && st.Sys().(*syscall.Stat_t).Uid == b.uid {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (b *bench) signal(cmd *exec.Cmd, sig syscall.Signal) {
	b.t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		b.t.Fatal(err)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	return lines[len(lines)-1]
}

func TestInterruptOnce(t *testing.T) {
	b := newBench(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if sig != syscall.SIGINT && signal.Ignored(sig) {
			continue // these tests run under nohup, or in the background
		}
		cmd, rest, stderr := b.start("--result", "r.json", "bb", "sh", "-c", `trap "echo told; exit 3" TERM; echo up; while true; do sleep 0.05; done`, "in-the-task")
		b.signal(cmd, sig)
		if got := rest(); got != "told\n" {
			t.Errorf("%v: the task wrote %q", sig, got)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.HasPrefix(lastLine(stderr.String()), "berth: Canceled") {
			t.Errorf("%v: exit code %d, %s", sig, code, stderr)
		}
		var res struct{ State, Reason string }
		raw, err := os.ReadFile(filepath.Join(b.dir, "r.json"))
		if err = errors.Join(err, json.Unmarshal(raw, &res)); err != nil || res.State != "CANCELED" {
			t.Errorf("%v: result %+v, %v", sig, res, err)
		}
		b.clean()
	}
}

func TestInterruptTwice(t *testing.T) {
	b := newBench(t)
	cmd, rest, stderr := b.start("--name", "twice", "--grace", "1h", "bb", "sh", "-c", `trap "echo told" TERM; echo up; while true; do sleep 0.05; done`, "in-the-task")
	b.signal(cmd, syscall.SIGINT)
	b.await("told", "logs", "twice") // the second must not come before the first was acted on
	began := time.Now()
	b.signal(cmd, syscall.SIGINT)
	if got := rest(); got != "told\n" {
		t.Errorf("the task wrote %q", got)
	}
	_ = cmd.Wait()
	if code, took := cmd.ProcessState.ExitCode(), time.Since(began); code != 130 || took > 30*time.Second {
		t.Errorf("exit code %d after %v: %s", code, took, stderr)
	}
	b.clean()
}

func TestGraceEnds(t *testing.T) {
	b := newBench(t)
	cmd, rest, _ := b.start("--grace", "300ms", "bb", "sh", "-c", `trap "" TERM; echo up; while true; do sleep 0.05; done`, "in-the-task")
	began := time.Now()
	b.signal(cmd, syscall.SIGINT)
	rest()
	_ = cmd.Wait()
	if took := time.Since(began); cmd.ProcessState.ExitCode() != 130 || took < 300*time.Millisecond || took > 9*time.Second {
		t.Errorf("exit code %d after %v", cmd.ProcessState.ExitCode(), took)
	}
	b.clean()
}

// TestStopInterrupted: who no longer waits for the end of a detached task leaves it to its end.
func TestStopInterrupted(t *testing.T) {
	b := newBench(t)
	out, code := b.output("run", "--detach", "--grace", "4s", "bb", "sh", "-c", `trap "echo told" TERM; echo up; while true; do sleep 0.05; done`, "in-the-task")
	if code != 0 {
		t.Fatal(out)
	}
	id := strings.TrimSpace(out)
	b.await("up", "logs", id)
	cmd := b.berth("stop", id)
	said := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if out, _ := b.output("logs", id); out == "up\ntold\n" {
			break
		}
	}
	b.signal(cmd, syscall.SIGINT)
	_ = cmd.Wait()
	if want := "berth: stop: no longer waiting for task " + id + ", which is still being ended\n"; said.String() != want || cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("exit code %d, %s", cmd.ProcessState.ExitCode(), said)
	}
	if out, code := b.output("ps", "-q"); out != id+"\n" || code != 0 {
		t.Errorf("it was waited for: %q, exit code %d", out, code)
	}
	if out, code := b.output("wait", id); out != "130\n" || code != 0 {
		t.Errorf("wait: %q, exit code %d", out, code)
	}
	b.clean()
}

func TestKilledInTheForeground(t *testing.T) {
	b := newBench(t)
	cmd := b.startWaiting("early")
	b.signal(cmd, syscall.SIGKILL)
	_ = cmd.Wait()
	out, code := b.output("system", "cleanup")
	if code != 0 || !strings.Contains(out, "it ran in the foreground of a berth that was killed") {
		t.Errorf("cleanup: exit code %d, %s", code, out)
	}
	if out, _ := b.output("ps", "-a", "--format", "json"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"state":"SYSTEM_ERROR"`) {
		t.Errorf("ps: %s", out)
	}
	if out, code := b.output("system", "cleanup"); out != "" || code != 0 {
		t.Errorf("a second cleanup finds %q, exit code %d", out, code)
	}
}

func TestMonitorKilled(t *testing.T) {
	b := newBench(t)
	cmd, rest, stderr := b.start("bb", "sh", "-c", `echo up; while true; do sleep 0.05; done`, "in-the-task")
	pids := processes("berth-monitor\x00--data-dir\x00" + b.data + "\x00")
	if len(pids) != 1 {
		t.Fatalf("monitors: %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	rest()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.HasPrefix(lastLine(stderr.String()), "berth: Lost") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	b.clean()
}

// TestLostSaysWhatIsKnown kills what a running task needs; its result says when it started and by what, and its outputs
// are collected where berth lives to do so.
func TestLostSaysWhatIsKnown(t *testing.T) {
	b := newBench(t)
	for _, killed := range []string{"monitor", "berth"} {
		t.Run(killed, func(t *testing.T) {
			before := time.Now()
			cmd, rest, _ := b.start("--name", killed, "--output", killed+".out:/out/a", "bb", "sh", "-c",
				`echo part >/out/a; echo up; while true; do sleep 0.05; done`, "in-the-task")
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				if out, _ := b.output("ps", "--state", "running", "-q"); out != "" {
					break // its start is recorded
				}
			}
			if killed == "berth" {
				b.signal(cmd, syscall.SIGKILL)
			} else {
				for _, pid := range processes("berth-monitor\x00--data-dir\x00" + b.data + "\x00") {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			rest()
			_ = cmd.Wait()
			out, code := b.output("wait", "--format", "json", killed)
			var got berth.Result
			if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
				t.Fatalf("%v, exit code %d: %s", err, code, out)
			}
			if got.Reason != berth.Lost || got.Started == nil || got.Started.Before(before) || got.Started.After(*got.Ended) || got.Runtime == "" {
				t.Errorf("%s", out)
			}
			raw, err := os.ReadFile(filepath.Join(b.dir, killed+".out"))
			if collected := err == nil && string(raw) == "part\n"; collected != (killed == "monitor") {
				t.Errorf("the output is there: %t (%q, %v)", collected, raw, err)
			}
		})
	}
	b.clean()
}

// TestMonitorKilledBesideDetached kills the monitor of a detached task while a task in the foreground starts it anew at
// once: no berth finds it gone, so the new one has to have a worker record the detached task's end. One that is told to end
// says that of its tasks, which nobody has canceled.
func TestMonitorKilledBesideDetached(t *testing.T) {
	for sig, reason := range map[syscall.Signal]berth.Reason{syscall.SIGKILL: berth.Lost, syscall.SIGTERM: berth.Preempted} {
		t.Run(string(reason), func(t *testing.T) { monitorEnds(t, sig, reason) })
	}
}

func monitorEnds(t *testing.T, sig syscall.Signal, reason berth.Reason) {
	b := newBench(t)
	detached, code := b.output("run", "--detach", "--output", "out:/out/a", "bb", "sh", "-c", "echo part >/out/a; echo up; sleep 1000; true", "in-the-task")
	if code != 0 {
		t.Fatal(detached)
	}
	detached = strings.TrimSpace(detached)
	cmd, rest, stderr := b.start("bb", "sh", "-c", `echo up; while true; do sleep 0.05; done`, "in-the-task")
	h, err := (&app{out: io.Discard, err: io.Discard, global: globalOptions{dataDir: b.data}}).openTasks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	await := func(what string, ok func(store.Record) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			r, err := h.tasks.Get(t.Context(), detached)
			if err != nil {
				t.Fatal(err)
			}
			if ok(r) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the detached task is not %s: it is %s", what, r.State)
			}
		}
	}
	await("parked", func(r store.Record) bool { return r.State == berth.Running && !h.runner.Driven(detached) })
	await("writing", func(store.Record) bool { out, _ := b.output("logs", detached); return out == "up\n" })
	pids := processes("berth-monitor\x00--data-dir\x00" + b.data + "\x00")
	if len(pids) != 1 {
		t.Fatalf("monitors: %v", pids)
	}
	if err := syscall.Kill(pids[0], sig); err != nil {
		t.Fatal(err)
	}
	rest()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.HasPrefix(lastLine(stderr.String()), "berth: "+string(reason)) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	await("ended", func(r store.Record) bool { return r.State.Final() })
	if out, _ := b.output("ps", "-a", "--format", "json"); strings.Count(out, `"reason":"`+string(reason)+`"`) != 2 || strings.Count(out, `"state":"SYSTEM_ERROR"`) != 2 {
		t.Errorf("ps: %s", out)
	}
	if raw, err := os.ReadFile(filepath.Join(b.dir, "out")); err != nil || string(raw) != "part\n" {
		t.Errorf("its output: %q, %v", raw, err)
	}
	b.clean()
}

func TestNobodyReadsTheOutput(t *testing.T) {
	b := newBench(t)
	cmd := b.berth("run", "bb", "sh", "-c", "while true; do echo up; done", "in-the-task")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = out.Read(make([]byte, 3))
	_ = out.Close()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || stderr.Len() > 0 {
		t.Errorf("exit code %d, want 130; %s", code, stderr)
	}
	b.clean()
}

// TestStopWhileNobodyReads: who does not read what a task writes keeps nobody from ending it.
func TestStopWhileNobodyReads(t *testing.T) {
	b := newBench(t)
	cmd, _, stderr := b.start("--name", "slow", "bb", "sh", "-c", "echo up; yes in-the-task")
	b.wrote(1 << 20) // more than pipes hold: all was shown otherwise
	stopped := make(chan string, 1)
	go func() {
		out, code := b.output("stop", "--now", "slow")
		stopped <- fmt.Sprint(code, " ", out)
	}()
	select {
	case got := <-stopped:
		if !strings.HasPrefix(got, "0 ") {
			t.Errorf("stop: %s", got)
		}
	case <-time.After(time.Minute):
		t.Error("stop waits for who reads")
		_ = cmd.Process.Kill()
		<-stopped
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(stderr.String(), "warning: what the task wrote was not all shown") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	b.clean()
}

// wrote waits until a task's log has so many bytes.
func (b *bench) wrote(bytes int64) {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		logs, _ := filepath.Glob(filepath.Join(b.data, "tasks/*/steps/0/stdout"))
		for _, l := range logs {
			if st, err := os.Stat(l); err == nil && st.Size() >= bytes {
				return
			}
		}
		if time.Now().After(end) {
			b.t.Fatalf("no log has %d bytes: %v", bytes, logs)
		}
	}
}

// TestStopOfWhatHasEnded: nor does who does not read keep anybody waiting for the end of a task whose command has ended by
// itself. Its outcome is its own.
func TestStopOfWhatHasEnded(t *testing.T) {
	b := newBench(t)
	cmd, _, stderr := b.start("--name", "slow", "bb", "sh", "-c", "echo up; head -c 4194304 /dev/zero; exit 3", "in-the-task")
	for end := time.Now().Add(time.Minute); len(b.tasks()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the command does not end while nobody reads")
		}
	}
	stopped := make(chan string, 1)
	go func() {
		out, code := b.output("stop", "slow")
		stopped <- fmt.Sprint(code, " ", out)
	}()
	select {
	case got := <-stopped:
		if !strings.HasPrefix(got, "0 ") {
			t.Errorf("stop: %s", got)
		}
	case <-time.After(time.Minute):
		t.Error("stop waits for who reads")
		_ = cmd.Process.Kill()
		<-stopped
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(stderr.String(), "warning: what the task wrote was not all shown") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	b.clean()
}

// TestDetachedOutlivesItsWorker kills all of berth but the monitor while a detached task runs.
func TestDetachedOutlivesItsWorker(t *testing.T) {
	b := newBench(t)
	id, code := b.output("run", "--detach", "bb", "sh", "-c", "sleep 1; echo done; exit 6", "in-the-task")
	if code != 0 {
		t.Fatal(id)
	}
	for _, pid := range processes("\x00worker\x00" + strings.TrimSpace(id) + "\x00") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if out, code := b.output("wait", strings.TrimSpace(id)); out != "6\n" || code != 0 {
		t.Errorf("wait: %q, exit code %d", out, code)
	}
	if out, _ := b.output("logs", strings.TrimSpace(id)); out != "done\n" {
		t.Errorf("logs: %q", out)
	}
	b.clean()
}

// TestReviveOnlyWhatIsAdrift starts no worker while all tasks are looked after.
func TestReviveOnlyWhatIsAdrift(t *testing.T) {
	b := newBench(t)
	cmd, _, _ := b.start("bb", "sh", "-c", `echo up; while true; do sleep 0.05; done`, "in-the-task")
	detached, code := b.output("run", "--detach", "bb", "sh", "-c", "sleep 100; true", "in-the-task")
	if code != 0 {
		t.Fatal(detached)
	}
	detached = strings.TrimSpace(detached)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if out, _ := b.output("ps", "--state", "running", "-q"); strings.Count(out, "\n") == 2 && len(processes("--data-dir\x00"+b.data+"\x00--engine\x00oci\x00worker\x00")) == 0 {
			break
		}
	}
	h, err := (&app{out: io.Discard, err: io.Discard, global: globalOptions{dataDir: b.data}}).openTasks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	adrift := func() (ids []string) {
		for r, err := range h.tasks.Stale(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if h.adrift(r) {
				ids = append(ids, r.ID)
			}
		}
		return ids
	}
	if ids := adrift(); len(ids) != 0 {
		t.Errorf("adrift: %v", ids)
	}
	monitors := processes("berth-monitor\x00--data-dir\x00" + b.data + "\x00")
	for _, pid := range monitors { // else it has a worker put things right by itself
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	b.signal(cmd, syscall.SIGKILL)
	_ = cmd.Wait()
	if ids := adrift(); len(ids) != 1 {
		t.Errorf("of one killed in the foreground, adrift: %v", ids)
	}
	for _, pid := range monitors {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && watched(place{engine: engineOCI}, b.data); time.Sleep(10 * time.Millisecond) {
	}
	// The other's end may have been recorded before: its monitor had a worker do so.
	if ids := adrift(); !slices.Contains(ids, detached) {
		t.Errorf("without a monitor, adrift: %v; want %s among them", ids, detached)
	}
	b.output("ps") // which has a worker put both right
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		open := 0
		for range h.tasks.Stale(t.Context()) {
			open++
		}
		if open == 0 {
			b.clean()
			return
		}
	}
	t.Errorf("still adrift: %v", adrift())
}

func TestVersionIsQuick(t *testing.T) {
	best := time.Hour
	for range 10 {
		began := time.Now()
		if out, err := (&exec.Cmd{Path: "/proc/self/exe", Args: []string{"berth", "version"}, Env: []string{noSleep}}).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		best = min(best, time.Since(began))
	}
	if best > 150*time.Millisecond { // some 5 ms, but for the race detector and a busy machine
		t.Errorf("berth version takes %v", best)
	}
}

// executable is the path of the program for what is started by another.
func (b *bench) executable() string {
	if b.program != "/proc/self/exe" {
		return b.program
	}
	path, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	return path
}

// privateMounts gives a process mounts of its own.
func privateMounts() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
}

// TestKilledIsNoticed: who waits for a task hears of its berth's death, and who looks sees it, with no other command.
func TestKilledIsNoticed(t *testing.T) {
	b := newBench(t)
	cmd, _, _ := b.start("--name", "killed", "bb", "sh", "-c", `echo up; while true; do sleep 0.05; done`, "in-the-task")
	var waiters []*exec.Cmd
	var outs []*bytes.Buffer
	for _, args := range [][]string{{"logs", "-f", "killed"}, {"wait", "killed"}} {
		w, out := b.berth(args...), &bytes.Buffer{}
		w.Stdout, w.Stderr = out, out
		if err := w.Start(); err != nil {
			t.Fatal(err)
		}
		waiters, outs = append(waiters, w), append(outs, out)
	}
	b.signal(cmd, syscall.SIGKILL)
	_ = cmd.Wait()
	for i, want := range []string{"up\n", "125\n"} {
		if err := waiters[i].Wait(); err != nil || outs[i].String() != want {
			t.Errorf("%q, %v, want %q", outs[i], err, want)
		}
	}
	if out, _ := b.output("ps", "-a", "--format", "json"); !strings.Contains(out, `"state":"SYSTEM_ERROR","reason":"Lost"`) {
		t.Errorf("ps: %s", out)
	}
	b.clean()

	// Before it had a container, nobody sees berth die: the first that looks puts it right, and tells.
	cmd = b.startWaiting("early")
	b.signal(cmd, syscall.SIGKILL)
	_ = cmd.Wait()
	if out, _ := b.output("ps"); strings.Contains(out, "early") {
		t.Errorf("ps: %s", out)
	}
	b.clean()
}

// startWaiting starts a task that gets no container: it waits for an input from a server that never answers.
func (b *bench) startWaiting(name string) *exec.Cmd {
	b.t.Helper()
	l, err := new(net.ListenConfig).Listen(b.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = l.Close() })
	cmd := b.berth("run", "--name", name, "--input", "http://"+l.Addr().String()+"/x:/in/x", "bb", "true")
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if out, _ := b.output("ps"); strings.Contains(out, "INITIALIZING") {
			return cmd
		}
	}
	b.t.Fatal("the task never came so far")
	return nil
}

// TestNobodyReadsAList ends as cat(1) does when its reader goes: without a word.
func TestNobodyReadsAList(t *testing.T) {
	b := newBench(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	cmd := b.berth("ps", "-a")
	stderr := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = w, stderr
	_ = cmd.Run()
	_ = w.Close()
	if code := cmd.ProcessState.ExitCode(); code != 141 || stderr.Len() > 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
