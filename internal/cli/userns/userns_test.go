package userns_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/internal/cli/userns"
)

// The test binary is also the program that enters: with this variable set it tells what it has become.
const probe = "USERNS_TEST_PROBE"

func TestMain(m *testing.M) {
	userns.HelperMain()
	if os.Getenv(probe) == "" {
		os.Exit(m.Run())
	}
	if userns.Needed() {
		fmt.Fprintln(os.Stderr, userns.Enter(99))
		os.Exit(98)
	}
	entered := userns.Entered()
	uidMap, _ := os.ReadFile("/proc/self/uid_map")
	groups, _ := os.ReadFile("/proc/self/setgroups")
	children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	pipes := 0
	for fd := 3; fd < 64; fd++ {
		if to, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd)); strings.HasPrefix(to, "pipe:") {
			pipes++
		}
	}
	_, _ = fmt.Fprintf(os.Stdout, "uid %d entered %v args %q groups %s children %q pid %d marker %q\n%s", os.Getuid(), entered, os.Args[1:],
		strings.TrimSpace(string(groups)), children, os.Getpid(), os.Getenv("_BERTH_USERNS"), uidMap)
	if pipes > 0 {
		_, _ = fmt.Fprintln(os.Stdout, "pipes were left over:", pipes)
	}
	if os.Getenv(probe) == "sleep" {
		time.Sleep(time.Minute)
	}
	os.Exit(7)
}

// as runs the test binary as a user of the machine.
func as(t *testing.T, uid, gid uint32, env ...string) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: to become several users")
	}
	dir, err := os.MkdirTemp("/tmp", "userns")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := dir + "/program"
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "a", "b c", "")
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=/", "GORACE=atexit_sleep_ms=0"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	return cmd
}

func TestEnterWithOneID(t *testing.T) {
	// A user of whom no /etc/subuid knows.
	cmd := as(t, 64123, 64123, probe+"=1")
	out, err := cmd.CombinedOutput()
	exit, _ := err.(*exec.ExitError) //nolint:errorlint // as it comes from Cmd
	want := fmt.Sprintf("uid 0 entered true args [\"a\" \"b c\" \"\"] groups deny children \"\" pid %d marker \"\"\n", cmd.ProcessState.Pid())
	if exit == nil || exit.ExitCode() != 7 || !strings.HasPrefix(string(out), want) || strings.Join(strings.Fields(strings.TrimPrefix(string(out), want)), " ") != "0 64123 1" {
		t.Errorf("%v\ngot  %s\nwant %s0 64123 1", err, out, want)
	}
}

func TestEnterWithManyIDs(t *testing.T) {
	name := "berth-userns-test"
	if out, err := exec.CommandContext(t.Context(), "useradd", "--system", "--no-create-home", name).CombinedOutput(); os.Getuid() == 0 && err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("userdel", name).Run() })
	if os.Getuid() == 0 {
		if out, err := exec.CommandContext(t.Context(), "usermod", "--add-subuids", "4000000-4000099", "--add-subgids", "4000000-4000099", name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	raw, _ := exec.CommandContext(t.Context(), "sh", "-c", "id -u $0; id -g $0", name).Output()
	var uid, gid uint32
	_, _ = fmt.Sscan(string(raw), &uid, &gid)
	out, _ := as(t, uid, gid, probe+"=1").CombinedOutput()
	want := fmt.Sprintf("groups allow 0 %d 1 1 4000000 100", uid)
	got := strings.Join(strings.Fields(string(out)), " ")
	if _, rest, _ := strings.Cut(got, "groups "); !strings.HasPrefix(rest, "allow ") || !strings.HasSuffix(got, strings.TrimPrefix(want, "groups allow ")) {
		t.Errorf("got %s, want … %s", got, want)
	}
}

func TestEnterIsOneProcess(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		cmd := as(t, 64123, 64123, probe+"=sleep")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n, err := out.Read(make([]byte, 100)); n == 0 {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); got != sig {
			t.Errorf("ended by %v, want %v", got, sig)
		}
	}
}

func TestRefusedSaysTheRemedy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to forbid user namespaces")
	}
	const limit = "/proc/sys/user/max_user_namespaces"
	script := `echo 0 > ` + limit + ` && exec setpriv --reuid 5 --regid 5 --clear-groups "$0" x`
	cmd := as(t, 0, 0, probe+"=1")
	cmd.Args = []string{"sh", "-c", script, cmd.Path}
	cmd.Path = "/bin/sh"
	// The limit is that of a user namespace of the test's own.
	ids := []syscall.SysProcIDMap{{Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	out, err := cmd.CombinedOutput()
	want := "berth: user namespaces: denied: this host does not let you make one: no space left on device; as root: sysctl user.max_user_namespaces=15000\n"
	if string(out) != want || cmd.ProcessState.ExitCode() != 99 {
		t.Errorf("exit code %d, %v\ngot  %swant %s", cmd.ProcessState.ExitCode(), err, out, want)
	}
}
