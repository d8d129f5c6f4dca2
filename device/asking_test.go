package device_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// standingIn starts a program with arguments that has a file open and does nothing.
func standingIn(t *testing.T, uid uint32, file, program string, args ...string) (pid int) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.ExtraFiles, cmd.Env = "/", []*os.File{f}, append(os.Environ(), standIn+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// What reads gauges of a GPU has it open, and does not use it: berth does, and what only says that it is berth does not
// count for it.
func TestWhoAsksIsNotBusy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root makes device nodes and processes of other users")
	}
	const self = "/proc/self/exe"
	for name, tt := range map[string]struct {
		uid     uint32
		program string
		args    []string
		busy    bool
	}{
		"the administrator's meter": {0, self, []string{"--data-dir", "/d", "gpu", "meter", "1", "GPU-1"}, false},
		"a question":                {0, self, []string{"gpu", "nvml", ""}, false},
		"a user's, for a while":     {54321, self, []string{"gpu", "meter", "1"}, false},
		"berth does something else": {0, self, []string{"gpu meter", "run"}, true},
		"another that says so":      {0, "sh", []string{"-c", "echo $$; read wait", "berth", "gpu", "meter", "1"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := devicetest.New(t, devicetest.Options{AMD: 2})
			file := h.Path(h.AMD[0].Node.Path)
			if err := os.Chmod(file, 0o666); err != nil {
				t.Fatal(err)
			}
			pid := standingIn(t, tt.uid, file, tt.program, tt.args...)
			lent, err := choose(t, pool(t, h.Root, nil), asks("2"), nil)
			if (err != nil) != tt.busy {
				t.Errorf("process %d: %v, %v", pid, lent, err)
			}
			found, err := device.FindOpeners(t.Context(), []device.Number{h.AMD[0].Node.Number()})
			if err != nil {
				t.Fatal(err)
			}
			of := found.Of[h.AMD[0].Node.Number()]
			if slices.ContainsFunc(of, func(p device.Process) bool { return p.PID == pid }) != tt.busy {
				t.Errorf("process %d: %v", pid, of)
			}
		})
	}
}

// An ordinary user's processes count those that they may not look at: others', but for the kernel's own.
func TestHidden(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root makes processes of other users")
	}
	hidden := func(uid uint32) (n int) {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Dir, cmd.Env = "/", append(os.Environ(), lookOut+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		var failed string
		if _, err := fmt.Sscan(string(out), &n, &failed); err != nil || failed != "<nil>" {
			t.Fatalf("%s, %v", out, err)
		}
		return n
	}
	if n := hidden(0); n != 0 {
		t.Errorf("%d are hidden from root", n)
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	programs := 0
	for _, e := range all {
		if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && len(line) > 0 && e.Name() != "self" && e.Name() != "thread-self" {
			programs++
		}
	}
	// Some end, and some begin, meanwhile.
	if n := hidden(54321); n == 0 || n > 2*programs {
		t.Errorf("%d are hidden from a user, of %d programs", n, programs)
	}
}
