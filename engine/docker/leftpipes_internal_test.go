package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// standIn stands in for a container's shim: it has the pipes as that has, and a child that is the container, which ends when a file
// is there. Then it writes what that has left, and closes them.
const standIn = `
cd "$2/$1" || exit 1
exec 4<>"$1-stdout" 5<>init-stderr 6<"$1-stdout" 7<init-stderr
x=x
while [ ${#x} -lt $3 ]; do x=$x$x; done
sh -c 'while ! [ -e ended ]; do sleep 0.02; done' 4>&- 5>&- 6>&- 7>&- &
: >up
wait
printf "%.$3s" "$x" >&4
echo err >&5
`

// TestLeftPipes: what a container has left in its pipes is read when it has ended, and by nobody else then.
func TestLeftPipes(t *testing.T) {
	for _, row := range []struct {
		name   string
		argv0  string
		inside bool // a process of a container
		tty    bool
		size   int
		do     func(t *testing.T, dir string, end func()) // between
		gone   bool                                       // there is nothing to wait for
		whole  bool
	}{
		{name: "it ends", size: 10, whole: true},
		{name: "it leaves more than a pipe holds", size: 300_000, whole: true},
		{name: "it has a terminal", tty: true, size: 10, whole: true},
		{name: "another reads them, and goes on", size: 10, do: func(t *testing.T, dir string, end func()) {
			stop := reader(t, dir)
			time.Sleep(3 * restPoll)
			end()
			time.Sleep(3 * restPoll)
			stop()
		}},
		{name: "another has opened them, and goes", size: 10, do: func(t *testing.T, dir string, end func()) {
			time.Sleep(3 * restPoll)
			reader(t, dir)()
			time.Sleep(3 * restPoll)
			end()
		}},
		{name: "it is no shim", argv0: "containerd-shim-kata-v2", gone: true},
		{name: "it is in a container", inside: true, gone: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			root, id := t.TempDir(), berth.NewID()
			dir := filepath.Join(root, id)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{id + "-stdout", "init-stderr"} {
				if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if row.argv0 == "" {
				row.argv0 = "/usr/bin/containerd-shim-runc-v2"
			}
			sh, err := exec.LookPath("sh")
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), sh)
			cmd.Args = []string{row.argv0, "-c", standIn, "-id", id, root, fmt.Sprint(row.size)}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWPID} // of its children
			if row.inside {
				cmd.SysProcAttr.Unshareflags, cmd.SysProcAttr.Cloneflags = 0, syscall.CLONE_NEWPID
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				_ = cmd.Wait()
			}()
			for deadline := time.Now().Add(time.Minute); !exists(filepath.Join(dir, "up")); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("it does not come up")
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			e := &Engine{}
			type answer struct {
				*rest
				error
			}
			answered := make(chan answer, 1)
			go func() {
				left, err := e.awaitRest(ctx, id, row.tty)
				answered <- answer{left, err}
			}()
			end := func() {
				if err := os.WriteFile(filepath.Join(dir, "ended"), nil, 0o600); err != nil {
					t.Error(err)
				}
			}
			if row.gone {
				if got := <-answered; got.rest != nil || !errors.Is(got.error, berth.ErrNotFound) {
					t.Errorf("%+v, %v", got.rest, got.error)
				}
				return
			}
			if row.do == nil {
				row.do = func(_ *testing.T, _ string, end func()) {
					time.Sleep(3 * restPoll)
					end()
				}
			}
			time.Sleep(3 * restPoll)
			select {
			case got := <-answered:
				t.Fatalf("it runs, and what it has left is %+v, %v", got.rest, got.error)
			default:
			}
			row.do(t, dir, end)
			got := <-answered
			if got.error != nil || got.rest == nil {
				t.Fatalf("%+v, %v", got.rest, got.error)
			}
			if got.Whole != row.whole || row.whole && (string(got.Stdout) != strings.Repeat("x", row.size) || string(got.Stderr) != "err\n") {
				t.Errorf("whole %v, %d bytes %.20q, stderr %q", got.Whole, len(got.Stdout), got.Stdout, got.Stderr)
			}
			if n := len(e.opened.opened); n != 0 {
				t.Errorf("%d pipes are watched still", n)
			}
		})
	}
}

// reader has another process read a container's pipe until it is stopped.
func reader(t *testing.T, dir string) (stop func()) {
	t.Helper()
	pipe := filepath.Join(dir, filepath.Base(dir)+"-stdout")
	cmd := exec.CommandContext(t.Context(), "cat", pipe)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		if slices.ContainsFunc(files, func(f string) bool { to, _ := os.Readlink(f); return to == pipe }) {
			break
		}
		if time.Now().After(end) {
			t.Error("it never opened " + pipe)
			break
		}
	}
	time.Sleep(2 * restPoll)
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}
