package oci_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/enginetest/nested"
	"github.com/berth-project/berth/engine/oci"
	"golang.org/x/sys/unix"
)

// netOf holds the network namespace of a running container, so that its number is no other's, and answers the number.
func netOf(t *testing.T, c berth.Container) uint64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.(*oci.Container).Pid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestNetworkAgain: the network namespace of a sandbox is another one's later where nothing can be left in it, and never else.
func TestNetworkAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: looks at the namespaces of others' processes")
	}
	e, img := newEngine(t, "direct")
	openSandbox(t, e, berth.SandboxSpec{ID: "stays"}) // and with it the monitor
	idle := []string{"sleep", "1000"}
	for i, c := range []struct {
		name  string
		spec  berth.SandboxSpec
		step  berth.StepSpec
		then  func(t *testing.T, sb berth.Sandbox, c berth.Container)
		again bool
	}{
		{name: "plain", again: true},
		{name: "volume and tmpfs", spec: berth.SandboxSpec{Volumes: []berth.Volume{{Path: "/out"}}}, step: berth.StepSpec{Mounts: []berth.Mount{{Type: berth.MountTmpfs, Target: "/t"}}}, again: true},
		{name: "limits", spec: berth.SandboxSpec{Limits: berth.Limits{Disk: 32 << 20}}, again: true},
		{name: "unconfined", step: berth.StepSpec{Seccomp: "unconfined"}, again: true},
		{name: "packet", step: berth.StepSpec{Command: []string{"sh", "-c", "while sleep 0.05; do nc 127.0.0.1 9; done"}}, then: func(t *testing.T, _ berth.Sandbox, c berth.Container) {
			t.Helper()
			dev := fmt.Sprintf("/proc/%d/net/dev", c.(*oci.Container).Pid())
			before, _ := os.ReadFile(dev)
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if now, err := os.ReadFile(dev); err != nil || time.Now().After(end) {
					t.Fatalf("no packet: %v", err)
				} else if string(now) != string(before) {
					return
				}
			}
		}},
		{name: "OCI runtime", step: berth.StepSpec{Runtime: "runc"}},
		{name: "NET_ADMIN", step: berth.StepSpec{CapAdd: []string{"NET_ADMIN"}}},
		{name: "SYS_ADMIN", step: berth.StepSpec{CapAdd: []string{"SYS_ADMIN"}}},
		{name: "sysctl", step: berth.StepSpec{Sysctls: map[string]string{"net.ipv4.ip_default_ttl": "64"}}},
		{name: "mount of the host's", step: berth.StepSpec{Mounts: []berth.Mount{{Source: t.TempDir(), Target: "/m", ReadOnly: true}}}},
		{name: "device", step: berth.StepSpec{Devices: []berth.Device{{Host: "/dev/null", Container: "/dev/again"}}}},
		{name: "exec", then: func(t *testing.T, _ berth.Sandbox, c berth.Container) {
			t.Helper()
			if _, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"true"}}, berth.Stdio{}); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "another container before, which is gone", then: func(t *testing.T, sb berth.Sandbox, c berth.Container) {
			t.Helper()
			c2 := start(t, sb, berth.StepSpec{ID: "s2", Image: img, Command: idle, CapAdd: []string{"NET_ADMIN"}})
			if err := c2.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "command that is not there", then: func(t *testing.T, sb berth.Sandbox, c berth.Container) {
			t.Helper()
			x, err := start(t, sb, berth.StepSpec{ID: "s2", Image: img, Command: []string{"nothere"}}).Wait(t.Context())
			if err != nil || x.Reason != berth.NeverStarted {
				t.Fatalf("%+v, %v", x, err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.ID, c.step.ID, c.step.Image = fmt.Sprintf("t%d", i), "s", img
			if c.step.Command == nil {
				c.step.Command = idle
			}
			sb := openSandbox(t, e, c.spec)
			ctr := start(t, sb, c.step)
			if c.then != nil {
				c.then(t, sb, ctr)
			}
			number := netOf(t, ctr)
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := seenAgain(t, e, img, number, c.again); got != c.again {
				t.Errorf("seen again: %v, want %v", got, c.again)
			}
		})
	}
}

// seenAgain opens sandboxes, all at once, until one has that network namespace or enough were looked at.
func seenAgain(t *testing.T, e *oci.Engine, img berth.Image, number uint64, want bool) (found bool) {
	t.Helper()
	rounds := 1
	if want {
		rounds = 20
	}
	for n := range rounds {
		time.Sleep(500 * time.Millisecond) // longer than it rests
		var open []berth.Sandbox
		for i := range 18 { // more than wait in the pool
			sb := openSandbox(t, e, berth.SandboxSpec{ID: fmt.Sprintf("look%d-%d", n, i)})
			open = append(open, sb)
			c := start(t, sb, berth.StepSpec{ID: "s", Image: img, Command: []string{"sleep", "1000"}})
			if found = netOf(t, c) == number; found {
				break
			}
		}
		for _, sb := range open {
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if found {
			return true
		}
	}
	return false
}

// TestNetworkAgainRootless: it is the same for an ordinary user's, whose threads cannot leave a namespace.
func TestNetworkAgainRootless(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to become another user")
	}
	dir := ""
	if onV2(t) {
		dir = delegated(t)
	}
	out, err := asUser(t, dir, nil, nil, "-test.run=^TestNetworkAgain$/^(plain|packet|NET_ADMIN|exec)$")
	nested.Report(t, out)
	if err != nil && !t.Failed() {
		t.Errorf("%v\n%s", err, out)
	}
}
