package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the process that the tests put into cgroups: the first argument names what it does.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "helper" {
		if err := helper(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func helper(what string, args []string) error {
	switch what {
	case "join": // COUNT of descriptors from 3 on, then what to do in the cgroup
		runtime.LockOSThread()
		n, _ := strconv.Atoi(args[0])
		for fd := 3; fd < 3+n; fd++ {
			if _, err := unix.Write(fd, []byte("0")); err != nil {
				return fmt.Errorf("join: %w", err)
			}
			unix.CloseOnExec(fd)
		}
		return unix.Exec("/proc/self/exe", append([]string{"helper", "helper"}, args[1:]...), os.Environ())
	case "user":
		return userHelper(args[0] == "true", args[1])
	case "v2only": // the tests that args name, where only cgroup2 is mounted
		if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")); err != nil {
			return err
		}
		return unix.Exec("/proc/self/exe", append([]string{"cgroup.test"}, args...), os.Environ())
	case "hog": // touches BYTES of memory
		n, _ := strconv.Atoi(args[0])
		b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		for i := 0; i < n; i += 4096 {
			b[i] = 1
		}
		fmt.Println("touched")
		return nil
	case "spin": // uses the CPU for DURATION of CPU time
		d, err := time.ParseDuration(args[0])
		var now unix.Timespec
		for time.Duration(now.Nano()) < d {
			_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &now)
		}
		return err
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "forks": // COUNT children that sleep; prints how many there are
		n, _ := strconv.Atoi(args[0])
		made := 0
		for range n {
			c := exec.Command("/proc/self/exe", "helper", "sleep")
			if err := c.Start(); err != nil {
				break
			}
			made++
		}
		fmt.Println("made", made)
		time.Sleep(time.Hour)
	case "open": // PATH FLAG ...: one word of the outcome each
		for i := 0; i+1 < len(args); i += 2 {
			flag := map[string]int{"r": unix.O_RDONLY, "w": unix.O_WRONLY}[args[i+1]]
			_, err := unix.Open(args[i], flag|unix.O_NONBLOCK, 0)
			fmt.Println(outcome(err))
		}
	case "read": // PATH
		_, err := os.ReadFile(args[0])
		return err
	case "write": // PATH BYTES, to the next page, synced
		n, _ := strconv.Atoi(args[1])
		// By itself, where that can be: of what the kernel writes back some may be on others' account.
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|unix.O_DIRECT, 0o600)
		if errors.Is(err, unix.EINVAL) {
			f, err = os.Create(args[0])
		}
		if err != nil {
			return err
		}
		page := os.Getpagesize()
		chunk, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for ; n > 0; n -= len(chunk) {
			if _, err := f.Write(chunk[:min((n+page-1)/page*page, len(chunk))]); err != nil {
				return err
			}
		}
		return f.Sync()
	}
	return nil
}

func outcome(err error) string {
	if err == nil {
		return "yes"
	}
	if errors.Is(err, unix.EPERM) {
		return "EPERM"
	}
	return err.Error()
}

// command is a helper that starts in the group.
func command(ctx context.Context, g *Group, args ...string) *exec.Cmd {
	files := g.JoinV1()
	c := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"helper", "join", strconv.Itoa(len(files))}, args...)...)
	c.ExtraFiles = files
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if d := g.DirV2(); d != nil {
		c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(d.Fd())
	}
	return c
}

// shell is a script that runs in the group: a helper of these tests leaves much more behind there.
func shell(ctx context.Context, g *Group, script string) *exec.Cmd {
	args := []string{"-c", "for f do echo 0 >$f; done; " + script, "sh"}
	for _, f := range g.JoinV1() {
		args = append(args, f.Name())
	}
	c := exec.CommandContext(ctx, "/bin/sh", args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if d := g.DirV2(); d != nil {
		c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(d.Fd())
	}
	return c
}

// start runs a helper until it has printed its first line. Its end is waited for beside the test.
func start(t *testing.T, g *Group, args ...string) (p *os.Process, line string) {
	t.Helper()
	c := command(context.Background(), g, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c.Stdout = w
	err = c.Start()
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-ended
	})
	buf := make([]byte, 100)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return c.Process, strings.TrimSpace(string(buf[:n]))
}

// host finds the host as the tests need it: as root.
func host(t *testing.T) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root can make cgroups on every host")
	}
	h, err := Find(t.Context(), Options{Base: "berth-test", Adopt: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.RemoveAll(context.Background(), instance(t)); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// instance is the owner of what a test makes.
func instance(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "=", "-", " ", "-", "#", "-").Replace(t.Name()))
}

func make1(t *testing.T, h *Host, spec Spec) *Group {
	t.Helper()
	if spec.Path == "" {
		spec.Path = "a"
	}
	spec.Path = instance(t) + "/" + spec.Path
	g, err := h.Make(spec)
	if err != nil {
		t.Fatal(err)
	}
	return g
}
