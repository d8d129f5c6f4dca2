package device_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// holder starts a process that has a file open, and another below it.
func holder(t *testing.T, file string) (pid, below int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `exec 7<"$1"; echo $$; sleep 60 & echo $!; wait`, "sh", file)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := fmt.Fscan(out, &pid, &below); err != nil {
		t.Fatal(err)
	}
	return pid, below
}

func TestFindOpeners(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 2})
	pid, below := holder(t, h.Path(h.AMD[0].Node.Path))
	t.Cleanup(func() { _ = syscall.Kill(below, syscall.SIGKILL) })
	free, held := h.AMD[1].Node.Number(), h.AMD[0].Node.Number()
	found, err := device.FindOpeners(t.Context(), []device.Number{held, free})
	if err != nil || found.Hidden != 0 {
		t.Fatal(found, err)
	}
	var pids []int
	for _, p := range found.Of[held] {
		if p.Descends([]int{pid}) { // others of the host may have such a device open, too
			pids = append(pids, p.PID)
		}
		if p.PID == pid && (p.Command != "sh" || p.UID != uint32(os.Getuid())) {
			t.Errorf("%+v", p)
		}
	}
	// The process below has inherited what the one above has open.
	if len(pids) != 2 || pids[0] != pid || pids[1] != below {
		t.Errorf("%v have it open, want %d and %d", found.Of[held], pid, below)
	}
	if p := (device.Process{PID: pid}); p.Descends([]int{below}) || !p.Descends([]int{os.Getpid()}) {
		t.Error("whose descendant a process is, is confused")
	}
}

// Any process can take the name of a service that uses nothing of a GPU, and put into it what moves a terminal.
func TestNamesOfOpeners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root makes device nodes and processes of other users")
	}
	h := devicetest.New(t, devicetest.Options{AMD: 1})
	n := h.AMD[0].Node.Number()
	for name, tt := range map[string]struct {
		uid     uint32
		command string
		want    string // how it is told; "" if it is left out
	}{
		"the administrator's":  {0, "nvidia-smi", ""},
		"a user's":             {54321, "nvidia-smi", `"nvidia-smi" (process %d)`},
		"of other name":        {0, "nvidia-smi2", `"nvidia-smi2" (process %d)`},
		"a sequence of escape": {54321, `a\033[2Jb`, `"a\x1b[2Jb" (process %d)`},
	} {
		t.Run(name, func(t *testing.T) {
			pid := named(t, tt.uid, tt.command, h.Path(h.AMD[0].Node.Path))
			found, err := device.FindOpeners(t.Context(), []device.Number{n})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, p := range found.Of[n] {
				if p.PID == pid {
					got = p.String()
				}
			}
			want := tt.want
			if want != "" {
				want = fmt.Sprintf(want, pid)
			}
			if got != want {
				t.Errorf("it is told as %s, want %s", got, want)
			}
		})
	}
}

// named starts a process of a user that has a name and a file open.
func named(t *testing.T, uid uint32, name, file string) (pid int) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `printf "$1" >/proc/$$/comm; echo $$; read wait`, "sh", name)
	cmd.Dir, cmd.ExtraFiles = "/", []*os.File{f}
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

func TestFindOpenersIsQuick(t *testing.T) {
	for range 500 { // beside what this machine has open
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	least := time.Hour
	for range 5 {
		start := time.Now()
		if _, err := device.FindOpeners(t.Context(), []device.Number{{Major: 10, Minor: 229}}); err != nil {
			t.Fatal(err)
		}
		least = min(least, time.Since(start))
	}
	t.Logf("%v", least)
	if least > 50*time.Millisecond && !raced {
		t.Errorf("looking for who uses devices took %v", least)
	}
}
