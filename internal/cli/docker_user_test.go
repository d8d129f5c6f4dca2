package cli

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestOrdinaryUserDocker runs tasks on a daemon of root's as a user who may use its socket, and is nobody else: what
// containers write as root, which this user could neither read nor remove, is collected, the user's, and gone.
func TestOrdinaryUserDocker(t *testing.T) {
	const uid = 64127
	socket := strings.TrimPrefix(startDockerd(t).Host(), "unix://")
	for _, err := range []error{os.Chmod(filepath.Dir(socket), 0o711), os.Chown(socket, 0, uid), os.Chmod(socket, 0o660)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b := ordinary(t, uid, "BERTH_ENGINE=docker", "DOCKER_HOST=unix://"+socket)
	in := filepath.Join(b.dir, "in")
	if err := os.WriteFile(in, []byte("fed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(in, uid, uid); err != nil {
		t.Fatal(err)
	}
	out, code := b.output("run", "--input", "in:/data/in", "--mount", b.dir+":/m:ro", "--volume", "/scratch", "--output", "x:/work/x", "--output", "d/:/work/d/", "--result", "r.json",
		"bb", "sh", "-c", "umask 077; cp /data/in /work/x; mkdir -p /work/d/e; echo b >/work/d/e/f; chmod 0 /work/d/e/f; mkdir /scratch/left; cat /m/in; id -u; exit 3")
	if out != "fed\n0\n" || code != 3 {
		t.Errorf("run: exit code %d, %s", code, out)
	}
	for name, want := range map[string]string{"x": "fed\n", "d/e/f": "b\n"} {
		file := filepath.Join(b.dir, name)
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
			continue
		}
		if st, err := os.Stat(file); err != nil || st.Sys().(*syscall.Stat_t).Uid != uid {
			t.Errorf("%s: it belongs to another: %v, %v", name, st, err)
		}
	}
	b.gone(10 * time.Second)
	// What it uses is read where the daemon has put it, while it runs.
	if out, code := b.output("run", "--result", "u.json", "bb", "sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"); out != "" || code != 0 {
		t.Errorf("run: exit code %d, %s", code, out)
	}
	if raw, err := os.ReadFile(filepath.Join(b.dir, "u.json")); err != nil || !strings.Contains(string(raw), `"cpu_seconds"`) || !strings.Contains(string(raw), `"peak_memory`) {
		t.Errorf("no usage: %s, %v", raw, err)
	}
	id, code := b.output("run", "--detach", "--output", "y:/work/y", "bb", "sh", "-c", "umask 077; echo later >/work/y")
	if code != 0 {
		t.Fatalf("detached: %s", id)
	}
	if out, code := b.output("wait", strings.TrimSpace(id)); out != "0\n" || code != 0 {
		t.Errorf("wait: exit code %d, %q", code, out)
	}
	if got, err := os.ReadFile(filepath.Join(b.dir, "y")); string(got) != "later\n" {
		t.Errorf("output of a detached task: %q, %v", got, err)
	}
	b.gone(10 * time.Second)
}
