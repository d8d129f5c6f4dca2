package oci_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
	"golang.org/x/sys/unix"
)

// The monitor, and with it every task, has the ordinary scheduling policy, whatever the command has that starts it.
func TestRealTimeStarter(t *testing.T) {
	e, img := newEngine(t, "direct")
	defer policy(t, unix.SCHED_NORMAL, 0)
	policy(t, unix.SCHED_RR, 1)
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1", Limits: berth.Limits{CPU: 1}})
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"awk", "{ print $41 }", "/proc/self/stat"}})
	if x, err := c.Wait(t.Context()); err != nil || !x.OK() {
		t.Fatalf("%+v, %v", x, err)
	}
	if got := strings.TrimSpace(logs(t, c, false)); got != "0" {
		t.Errorf("scheduling policy of the command: %q", got)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStarterIsOfNoAccount: tasks have nothing of the command that happens to start the monitor, whatever starts them.
func TestStarterIsOfNoAccount(t *testing.T) {
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	which, files := "-S", min(own.Max, 1<<20)
	// Below the nice value, or the score, that a command has given itself nobody comes without the right.
	nice, score := "7", "echo 0"
	if hasCap(t, unix.CAP_SYS_RESOURCE) { // then hard limits are of no account either
		which, files = "-SH", 1<<20
		score = "cat /proc/self/oom_score_adj"
	}
	if hasCap(t, unix.CAP_SYS_NICE) {
		nice = "0"
	}
	var processes, stack unix.Rlimit
	if err := errors.Join(unix.Getrlimit(unix.RLIMIT_NPROC, &processes), unix.Getrlimit(unix.RLIMIT_STACK, &stack)); err != nil {
		t.Fatal(err)
	}
	most := "unlimited"
	if processes.Max != unix.RLIM_INFINITY {
		most = strconv.FormatUint(processes.Max, 10)
	}
	for _, rt := range []string{"direct", "runc", "crun"} {
		t.Run(rt, func(t *testing.T) {
			e, err := oci.New(oci.Config{Dir: t.TempDir(), Runtime: rt, Idle: 300 * time.Millisecond, Monitor: []string{"bash", "-c", strings.ReplaceAll(`
				set -e; ulimit WHICH -c 7; ulimit WHICH -f 1000; ulimit WHICH -t 100; ulimit WHICH -n 1000
				ulimit WHICH -v 10000000000000; ulimit WHICH -d 10000000000000; ulimit -S -s 1024; ulimit -S -u 10000; echo 300 >/proc/self/oom_score_adj
				echo 700000 >/proc/$$/timerslack_ns; taskset -pc 0 $$ >/dev/null; renice -n 7 $$ >/dev/null; exec -a "$0" /proc/$PPID/exe "$@"`, "WHICH", which), oci.MonitorName}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = e.Close() }()
			img, err := e.Images().Import(t.Context(), busybox(t), "busybox", image.ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sb.Close(t.Context()) }()
			const script = `ulimit -c; ulimit -f; ulimit -t; ulimit -Sn; ulimit -Hn; awk '{ print $19, $41 }' /proc/self/stat; awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status; awk '/^Max (data|stack|address)/ { print $4 } /^Max processes/ { print $3 }' /proc/self/limits; cat /proc/self/timerslack_ns; `
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "sleep 1000 & " + script + score + "; wait"}})
			cpus := allowedCPUs(t)
			want := fmt.Sprintf("0\nunlimited\nunlimited\n%d\n%[1]d\n%s 0\n%s\nunlimited\n%d\n%s\nunlimited\n50000\n0\n", files, nice, cpus, min(8<<20, stack.Max), most)
			waitFor(t, "all of what it says", ample, func() bool { return strings.Count(logs(t, c, false), "\n") == strings.Count(want, "\n") })
			if got := logs(t, c, false); got != want {
				t.Errorf("the first command has %q, want %q", got, want)
			}
			var out bytes.Buffer
			x, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"sh", "-c", script + score}}, berth.Stdio{Out: &out})
			if err != nil || !x.OK() || out.String() != want {
				t.Errorf("a further command has %q, want %q: %+v, %v", out.String(), want, x, err)
			}
		})
	}
}

// hasCap reports whether this thread has a capability.
func hasCap(t *testing.T, which int) bool {
	t.Helper()
	raw, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := strings.Cut(string(raw), "\nCapEff:\t")
	set, err := strconv.ParseUint(caps[:16], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return set&(1<<which) != 0
}

// allowedCPUs are those that this process may use, whatever its affinity.
func allowedCPUs(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("taskset", "0x"+strings.Repeat("f", 64), "awk", "/^Cpus_allowed_list/ { print $2 }", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// policy gives all threads of this process a scheduling policy.
func policy(t *testing.T, policy, priority uint32) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err == nil {
			err = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}, 0)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
}
