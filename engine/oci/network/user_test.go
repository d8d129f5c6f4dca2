package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// user is a process of an ordinary user in a user namespace, as berth is without root: it makes a sandbox of
// mode bridge with PROGRAM, asks ADDRESS and the HOST from in there, and stays until its input ends.
func user(args []string) error {
	h := New(Options{Pool: -1, Etc: args[1], userProgram: args[0]})
	defer h.Close()
	n, err := h.Setup(context.Background(), Spec{ID: "s", Network: berth.Network{Mode: berth.NetworkBridge}})
	if err != nil {
		return err
	}
	defer n.Close()
	most := 20 * time.Second // the helper's loop may begin after its route is there
	for _, addr := range args[2:] {
		answer := "nothing"
		err := inThread(func() error {
			if err := unix.Setns(int(n.NS.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			c, err := net.DialTimeout("tcp4", addr, most)
			if err != nil {
				return nil
			}
			defer c.Close()
			line, err := bufio.NewReader(c).ReadString('\n')
			if err == nil {
				answer = strings.TrimSpace(line)
			}
			return nil
		})
		if err != nil {
			return err
		}
		fmt.Println(answer)
		most = time.Second
	}
	resolv, hosts, _ := strings.Cut(string(n.ResolvConf), "\n")
	fmt.Println(resolv, n.Address.IsValid(), strings.Contains(hosts+string(n.Hosts), "10.0.2.100\ts\n"))
	_, _ = io.ReadAll(os.Stdin)
	return nil
}

// openTun lets users open /dev/net/tun, as it is on most hosts, in the tests' own mount namespace.
func openTun(t *testing.T) {
	t.Helper()
	tun := filepath.Join(t.TempDir(), "tun")
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mknod(tun, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))), os.Chmod(tun, 0o666),
		unix.Mount(tun, "/dev/net/tun", "", unix.MS_BIND, ""),
	); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount("/dev/net/tun", unix.MNT_DETACH) })
}

func startUserProcess(t *testing.T, args ...string) (c *exec.Cmd, stdin io.Closer, out *bufio.Reader) {
	t.Helper()
	c = exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{"user"}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 61234, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 61234, Size: 1}},
		Credential:  &syscall.Credential{NoSetGroups: true},
	}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c, in, bufio.NewReader(stdout)
}

// running counts the processes of a program in our network namespace.
func running(t *testing.T, program string) (n int) {
	t.Helper()
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		exe, _ := os.Readlink(p + "/exe")
		ns, _ := os.Readlink(p + "/ns/net")
		if ns == ours && strings.HasPrefix(filepath.Base(exe), program) {
			n++
		}
	}
	return n
}

func TestUserNetwork(t *testing.T) {
	for program, binary := range map[string]string{"slirp4netns": "slirp4netns", "pasta": "passt"} {
		t.Run(program, func(t *testing.T) {
			world := stage(t)
			openTun(t)
			home, err := currentNamespace()
			if err != nil {
				t.Fatal(err)
			}
			defer home.Close()
			serve(t, world, worldAddr+":7000", "world")
			serve(t, home, "127.0.0.1:7002", "loopback")
			etc := etc(t)
			if err := os.Chmod(filepath.Dir(etc), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, end := range []string{"closed", "killed"} {
				c, stdin, out := startUserProcess(t, program, etc, worldAddr+":7000", "10.0.2.2:7002")
				for _, want := range []string{"world saw " + hostAddr, "nothing", "nameserver 10.0.2.3 false true"} {
					line, err := out.ReadString('\n')
					if got := strings.TrimSpace(line); err != nil || got != want {
						t.Fatalf("%s, want %s: %v", got, want, err)
					}
				}
				if n := running(t, binary); n != 1 {
					t.Errorf("%d processes run", n)
				}
				if end == "killed" {
					_ = c.Process.Kill()
				} else {
					_ = stdin.Close()
				}
				_ = c.Wait()
				for stop := time.Now().Add(5 * time.Second); running(t, binary) > 0; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(stop) {
						t.Fatalf("%s: the process goes on", end)
					}
				}
			}
		})
	}
}

func TestUserNetworkWithoutAProgram(t *testing.T) {
	h := newHost(t, Options{Pool: -1, userProgram: "none"})
	err := h.userNetwork(t.Context(), &Net{})
	if !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "apt-get install slirp4netns") {
		t.Errorf("%v", err)
	}
}
