package berth_test

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestQuickstartEnded ends ./quickstart while it makes its image, with programs in place of those that it needs:
// nothing that is half made is left. What a quickstart left that could not tidy up, the next one removes.
func TestQuickstartEnded(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"quickstart", "scripts/lib.sh"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		put(name, string(text))
	}
	put("examples/align/data/reads_2.fq", "reads")
	put("stub/go", "#!/bin/sh\nmkdir -p bin && printf '#!/bin/sh\\nexit 1\\n' >bin/berth && chmod 755 bin/berth\n")
	put("stub/newuidmap", "#!/bin/sh\n")
	put("stub/mmdebstrap", `#!/bin/sh
trap '' INT
for last; do :; done
mkdir -p "$TMPDIR/tree/proc" && echo half >"$last" && echo $$ >`+dir+`/pid
exec sleep 1000
`)
	start := func() (*exec.Cmd, int) {
		t.Helper()
		_ = os.Remove(filepath.Join(dir, "pid"))
		cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "quickstart"))
		cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "stub")+":"+os.Getenv("PATH"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			raw, _ := os.ReadFile(filepath.Join(dir, "pid"))
			if pid, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
				return cmd, pid
			}
		}
		t.Fatal("it never made an image")
		return nil, 0
	}
	tree := func(cmd *exec.Cmd) string { return "/tmp/berth-quickstart." + strconv.Itoa(cmd.Process.Pid) }
	for sig, code := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130, syscall.SIGHUP: 129} {
		if signal.Ignored(sig) {
			continue // under nohup, or in the background: a script cannot hear it
		}
		cmd, maker := start()
		if err := syscall.Kill(cmd.Process.Pid, sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("%v: exit code %d, want %d", sig, got, code)
		}
		for _, left := range []string{tree(cmd), filepath.Join(dir, ".cache", "align.part.tar")} {
			if _, err := os.Lstat(left); err == nil {
				t.Errorf("%v: %s is left", sig, left)
			}
		}
		if syscall.Kill(maker, 0) == nil {
			t.Errorf("%v: mmdebstrap goes on", sig)
		}
	}
	killed, maker := start()
	_ = killed.Process.Kill()
	_ = killed.Wait()
	_ = syscall.Kill(maker, syscall.SIGKILL)
	next, _ := start()
	_ = syscall.Kill(next.Process.Pid, syscall.SIGTERM)
	_ = next.Wait()
	if _, err := os.Lstat(tree(killed)); err == nil {
		t.Errorf("%s is left of a quickstart that was killed", tree(killed))
	}
}
