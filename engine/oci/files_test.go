package oci_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/berth-project/berth"
)

// A container may write to the files that it is given, but cannot fill the host's disk or memory by them.
func TestFilesAreLimited(t *testing.T) {
	for _, tc := range []struct {
		name, script, want string
		rt                 string
		spec               berth.SandboxSpec
		mounts             []berth.Mount
		reason             berth.Reason
	}{
		{name: "in its own writable layer", rt: "direct", want: "1\n1\n", script: `
			echo 127.0.0.2 other >>/etc/hosts && grep -c other /etc/hosts
			mv /etc/hostname /etc/hostname.old && grep -c t1 /etc/hostname.old`},
		{
			name: "in its disk limit", rt: "direct", spec: berth.SandboxSpec{Limits: berth.Limits{Disk: 32 << 20}}, reason: berth.OutOfDisk,
			script: "dd if=/dev/zero of=/etc/hosts bs=1M count=64 2>/dev/null",
		},
		{
			name: "over something of the user's", rt: "direct", mounts: []berth.Mount{{Type: berth.MountTmpfs, Target: "/etc", Size: 1 << 20}}, want: "1\n1\n1\n",
			script: "grep -c t1 /etc/hosts; grep -c t1 /etc/hostname; dd if=/dev/zero of=/etc/hostname bs=1M count=4 2>/dev/null; echo $?",
		},
		{
			name: "by an OCI runtime", rt: "runc", want: "1\n1\n",
			script: "grep -c t1 /etc/hosts; dd if=/dev/zero of=/etc/hostname bs=1M count=4 2>/dev/null; echo $?",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, img := newEngine(t, tc.rt)
			tc.spec.ID = "t1"
			sb, err := e.Open(t.Context(), tc.spec)
			if err != nil {
				t.Fatal(err)
			}
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Mounts: tc.mounts, Command: []string{"sh", "-c", tc.script}})
			if tc.reason == "" {
				tc.reason = berth.Exited
			}
			if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != tc.reason {
				t.Errorf("Wait = %+v, %v", exit, err)
			}
			if got := logs(t, c, false); got != tc.want {
				t.Errorf("stdout %q, want %q", got, tc.want)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Each step of a sandbox finds the files as they were given.
func TestFilesOfEachStep(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"a", "b"} {
		c := start(t, sb, berth.StepSpec{ID: step, Image: img, Command: []string{"sh", "-c", "grep -c other /etc/hosts; echo 127.0.0.2 other >>/etc/hosts; ls -ld /etc | cut -c1-10"}})
		if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
			t.Fatalf("Wait = %+v, %v", exit, err)
		}
		if got, want := logs(t, c, false), "0\ndrwxr-xr-x\n"; got != want {
			t.Errorf("step %s: stdout %q, want %q", step, got, want)
		}
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A step for which a full disk limit leaves no room is recorded before its end is told: the next monitor knows both.
func TestNoRoomToStart(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1", Limits: berth.Limits{Disk: 16 << 20}})
	if how := sb.DiskEnforcement(); how != berth.DiskLoop && how != berth.DiskQuota {
		t.Fatalf("the limit is kept by %s", how)
	}
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "mkdir /d; i=0; while echo >/d/$i; do i=$((i+1)); done 2>/dev/null; exit 3"}})
	if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.OutOfDisk {
		t.Fatalf("Wait = %+v, %v; want OutOfDisk", exit, err)
	}
	step := berth.StepSpec{ID: "s2", Image: img, Command: []string{"sh", "-c", "echo ran; exit 4"}}
	const want = "there is no room to start"
	told := func(c berth.Container) {
		t.Helper()
		if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.OutOfDisk || !strings.Contains(exit.Detail, want) {
			t.Errorf("Wait = %+v, %v; want OutOfDisk and %q", exit, err, want)
		}
	}
	told(start(t, sb, step))
	if err := syscall.Kill(monitorPid(t, e.Dir()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again, err := sb.Container(t.Context(), "s2")
	if err != nil {
		t.Fatal("after the monitor was killed:", err)
	}
	told(again)
	told(start(t, sb, step)) // the same, and not run
	if err := sb.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
