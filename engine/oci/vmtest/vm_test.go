package vmtest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub", "run"), []byte("#!/bin/sh\necho \"$1 $K\"; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := Run(t, Config{
		Files: map[string]string{"/data": dir},
		Env:   []string{"K=it's set"},
		Disk:  64 << 20,
		Commands: [][]string{
			{"/data/sub/run", "a b"},
			{"sh", "-c", "cat /sys/fs/cgroup/cgroup.controllers; stat -f -c %T /; grep -c overlay /proc/filesystems"},
			{"sh", "-c", "mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && grep -c /mnt /proc/mounts"},
			{"sh", "-c", "kill -9 $$"},
			{"nothing-of-this-name"},
		},
		Modules: append(DefaultModules(), "virtio_pci", "virtio_blk"),
	})
	if want := []int{3, 0, 0, 137, 127}; !reflect.DeepEqual(r.Status, want) {
		t.Errorf("exits %v, want %v", r.Status, want)
	}
	want := "a b it's set\ncpuset cpu io memory hugetlb pids rdma misc\ntmpfs\n1\n1\n"
	if got := string(r.Output); !strings.HasPrefix(got, want) {
		t.Errorf("output %q, want %q first", got, want)
	}
}

// TestStuckIsTold: what hangs in the machine is named before its time is over, kernel stacks and all.
func TestStuckIsTold(t *testing.T) {
	r := Run(t, Config{stuckAfter: time.Second, Modules: []string{}, Commands: [][]string{{"sh", "-c", "sleep 12"}}})
	if !regexp.MustCompile(`(?s)nearly all time is over.*/proc/\d+: sleep 12\s.*nanosleep.*== goroutines`).Match(r.Output) {
		t.Errorf("what hangs is not told:\n%s", r.Output)
	}
}

// TestStandsStill: a machine that the emulator lets stand still is started anew, and that is told.
func TestStandsStill(t *testing.T) {
	t.Parallel()
	stop := &stopOnce{word: "stop here"}
	r := Run(t, Config{still: time.Minute, Modules: []string{}, Output: stop, Commands: [][]string{{"sh", "-c", "echo stop here; sleep 7; echo past"}}})
	if !stop.stopped || stop.err != nil {
		t.Fatal("the emulator was not stopped:", stop.err)
	}
	if len(r.Stalls) != 1 || !strings.Contains(r.Stalls[0], "no sign of life for 1m0s") || string(r.Output) != "stop here\npast\n" {
		t.Errorf("stalls %q, output %q", r.Stalls, r.Output)
	}
}

// stopOnce stops this process's emulator, once, when it writes the word.
type stopOnce struct {
	word    string
	written []byte // it comes in pieces
	stopped bool
	err     error
}

func (s *stopOnce) Write(b []byte) (int, error) {
	s.written = append(s.written, b...)
	if s.stopped || !bytes.Contains(s.written, []byte(s.word)) {
		return len(b), nil
	}
	s.stopped = true
	out, _ := exec.Command("pgrep", "-P", strconv.Itoa(os.Getpid()), "qemu-system").Output()
	if pid, err := strconv.Atoi(strings.TrimSpace(string(out))); err == nil {
		s.err = syscall.Kill(pid, syscall.SIGSTOP)
		return len(b), nil
	}
	s.err = errors.New("no emulator was found")
	return len(b), nil
}

func TestPanicIsAnError(t *testing.T) {
	_, err := Boot(t.Context(), Config{Commands: [][]string{{"sh", "-c", "echo c >/proc/sysrq-trigger"}}})
	if err == nil || !strings.Contains(err.Error(), "ended after 0 of 1 commands") || !strings.Contains(err.Error(), "panic") {
		t.Errorf("a panic: %v", err)
	}
}

func TestProgram(t *testing.T) {
	r := Run(t, Config{Files: Program(t, "runc"), Commands: [][]string{{"runc", "--version"}}, Modules: []string{}})
	if r.Status[0] != 0 || !strings.HasPrefix(string(r.Output), "runc version ") {
		t.Errorf("%v %s", r.Status, r.Output)
	}
}

func TestOtherArchitecture(t *testing.T) {
	r := Run(t, Config{
		Arch: "arm64", Disk: 64 << 20, Modules: append(DefaultModules(), "virtio_pci", "virtio_blk"),
		Commands: [][]string{{"uname", "-m"}, {"sh", "-c", "mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt && exit 4"}},
	})
	if want := []int{0, 4}; !reflect.DeepEqual(r.Status, want) || !strings.HasPrefix(string(r.Output), "aarch64\n") {
		t.Errorf("exits %v, output %q", r.Status, r.Output)
	}
}
