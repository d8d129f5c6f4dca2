package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// role makes the test binary another program: "go", which starts the other one, or "boots", which boots a machine
// that does not end by itself.
const role = "VMTEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "go":
		c := exec.CommandContext(context.Background(), "/proc/self/exe")
		c.Env = append(os.Environ(), role+"=boots")
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		err = c.Run()
	case "boots":
		fmt.Println(os.Getpid())
		_, err = Boot(context.Background(), Config{
			Modules: []string{}, Memory: 256, Output: os.Stdout, Commands: [][]string{{"sh", "-c", "echo up; sleep 1000"}},
		})
	}
	fmt.Println(err)
	os.Exit(1)
}

// TestNothingOutlivesTheTests kills what runs the tests, as somebody does who has seen enough.
func TestNothingOutlivesTheTests(t *testing.T) {
	for _, killed := range []string{"go", "boots"} {
		t.Run(killed, func(t *testing.T) {
			command := filepath.Join(t.TempDir(), "go") // by which the tests know it
			self, err := os.ReadFile("/proc/self/exe")
			if err == nil {
				err = os.WriteFile(command, self, 0o700)
			}
			if err != nil {
				t.Fatal(err)
			}
			c := exec.CommandContext(t.Context(), command)
			c.Env = append(os.Environ(), role+"=go")
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			c.Stdout, c.Stderr = w, w
			err = c.Start()
			_ = w.Close()
			if err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			buf := make([]byte, 1000)
			for !strings.HasSuffix(said.String(), "up\n") {
				n, err := r.Read(buf)
				said.Write(buf[:n])
				if err != nil {
					t.Fatalf("%v: %s", err, said.Bytes())
				}
			}
			first, _, _ := strings.Cut(said.String(), "\n")
			boots, _ := strconv.Atoi(first)
			qemu := pidfd(t, child(t, boots))
			victim := c.Process.Pid
			if killed == "boots" {
				victim = boots
			}
			if err := unix.Kill(victim, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(qemu), Events: unix.POLLIN}}, 30_000); n != 1 {
				t.Errorf("the machine is still there after half a minute: %v", err)
				_ = unix.PidfdSendSignal(qemu, unix.SIGKILL, nil, 0)
			}
			_ = c.Wait()
		})
	}
}

// child is the one child of a process. The kernel may leave it out of its list while processes come and go.
func child(t *testing.T, parent int) int {
	t.Helper()
	for range 100 {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				return pid
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("process %d has not one child", parent)
	return 0
}

func pidfd(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
