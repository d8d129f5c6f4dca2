package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// ordinary is a bench of a user who is not root: uid has no line in /etc/subuid, and so one id alone.
func ordinary(t *testing.T, uid uint32, env ...string) *bench {
	t.Helper()
	b := newBench(t, env...)
	dir, err := os.MkdirTemp("/tmp", "berth-ordinary")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "berth"), program, 0o755) // others execute it
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // others look into it
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "home"), 0o700)
	}
	if err == nil {
		err = os.Chown(filepath.Join(dir, "home"), int(uid), int(uid))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.uid, b.program, b.dir = uid, filepath.Join(dir, "berth"), filepath.Join(dir, "home")
	b.data = filepath.Join(b.dir, ".local", "share", "berth")
	t.Cleanup(func() { endMonitor(b.data) })
	archive, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	cmd := b.berth("image", "import", "-", "bb")
	cmd.Stdin = strings.NewReader(string(archive))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return b
}

// addUser adds a user to whom subordinate ids were given, and the groups of these too.
func addUser(t *testing.T, name string, uid uint32, gids ...uint32) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: to add a user")
	}
	remove := func() { // and its group; a test that was killed has left them
		_ = exec.Command("userdel", name).Run()
		_ = exec.Command("groupdel", name).Run()
	}
	remove()
	t.Cleanup(remove)
	id := fmt.Sprint(uid)
	argvs := [][]string{
		{"groupadd", "--gid", id, name},
		{"useradd", "--uid", id, "--gid", id, "--no-create-home", name},
		{"usermod", "--add-subuids", "5000000-5065535", "--add-subgids", "5000000-5065535", name},
	}
	for _, gid := range gids {
		argvs = append(argvs, []string{"usermod", "--add-subgids", fmt.Sprintf("%d-%[1]d", gid), name})
	}
	for _, argv := range argvs {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// TestRootlessWithManyIDs runs as a user to whom subordinate ids were given.
func TestRootlessWithManyIDs(t *testing.T) {
	addUser(t, "berth-cli-test", 64126)
	b := ordinary(t, 64126)
	out, code := b.output("run", "--user", "1000:1000", "--output", "x:/work/x", "bb", "sh", "-c", "id -u; echo a >/work/x; id -g")
	if out != "1000\n1000\n" || code != 0 {
		t.Errorf("exit code %d, %s", code, out)
	}
	if st, err := os.Stat(filepath.Join(b.dir, "x")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 64126 {
		t.Errorf("the output belongs to another: %v, %v", st, err)
	}
	b.clean()
}

// TestRootless runs as a user of one id.
func TestRootless(t *testing.T) {
	const uid = 64124
	b := ordinary(t, uid)
	out, code := b.output("run", "--output", "out/:/work/x", "--result", "r.json", "bb", "sh", "-c", "id -u; echo a >/work/x; exit 3")
	if out != "0\n" || code != 3 {
		t.Errorf("run: exit code %d, %q", code, out)
	}
	for _, name := range []string{"out/x", "r.json", ".local/share/berth/berth.db"} {
		st, err := os.Stat(filepath.Join(b.dir, name))
		if err != nil {
			t.Error(err)
		} else if got := st.Sys().(*syscall.Stat_t).Uid; got != uid {
			t.Errorf("%s belongs to %d, not to %d", name, got, uid)
		}
	}
	if out, code := b.output("ps", "-a", "--format", "json"); code != 0 || strings.Count(out, "\n") != 1 {
		t.Errorf("ps: exit code %d, %q", code, out)
	}
	if out, code := b.output("info"); code != 0 || !strings.Contains(out, "not root; root of a user namespace") || !strings.Contains(out, "more than one user in a container") {
		t.Errorf("info: exit code %d, %s", code, out)
	}
	cmd, rest, stderr := b.start("bb", "sh", "-c", `trap "echo told; exit 0" TERM; echo up; while true; do sleep 0.05; done`, "in-the-task")
	b.signal(cmd, syscall.SIGINT)
	if got := rest(); got != "told\n" {
		t.Errorf("the task wrote %q", got)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("interrupted: exit code %d, %s", code, stderr)
	}
	cmd, _, _ = b.start("bb", "sh", "-c", `echo up; while true; do sleep 0.05; done`, "in-the-task")
	b.signal(cmd, syscall.SIGKILL)
	_ = cmd.Wait()
	b.clean()
	id, code := b.output("run", "--detach", "bb", "sh", "-c", "echo done; exit 6")
	if code != 0 {
		t.Fatalf("detached: %s", id)
	}
	if out, code := b.output("wait", strings.TrimSpace(id)); out != "6\n" || code != 0 {
		t.Errorf("wait: exit code %d, %q", code, out)
	}
	b.clean()
}

// TestRootlessForbidden runs berth where user namespaces are forbidden: in one in which none can be made.
func TestRootlessForbidden(t *testing.T) {
	b := ordinary(t, 64125)
	ids := []syscall.SysProcIDMap{{Size: 1 << 16}}
	run := func(args string) (string, int) {
		script := "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --reuid 64125 --regid 64125 --clear-groups " + b.program + " " + args
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
		cmd.Dir, cmd.Env = "/", b.berth().Env
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	const why = "user namespaces: denied: this host does not let you make one: no space left on device; as root: sysctl user.max_user_namespaces=15000"
	for args, want := range map[string]int{"run bb true": 125, "image ls": 3} {
		if out, code := run(args); out != "berth: "+why+"\n" || code != want {
			t.Errorf("%s: exit code %d, want %d, %s", args, code, want, out)
		}
	}
	for _, args := range []string{"version", "help", "run --dry-run bb true", "ps"} {
		if out, code := run(args); code != 0 {
			t.Errorf("%s needs no namespace: exit code %d, %s", args, code, out)
		}
	}
	if out, code := run("info"); code != 0 || !strings.Contains(out, "user namespaces: "+strings.TrimPrefix(why, "user namespaces: ")) {
		t.Errorf("info: exit code %d, %s", code, out)
	}
}
