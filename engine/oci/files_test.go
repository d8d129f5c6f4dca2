package oci_test

import (
	"testing"

	"github.com/berth-project/berth"
)

// A container may write to the files that it is given, but cannot fill the host's disk or memory by them.
func TestFilesAreSmall(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", `
		echo 127.0.0.2 other >>/etc/hosts && grep -c other /etc/hosts
		dd if=/dev/zero of=/etc/hostname bs=1M count=4 2>/dev/null; echo $?`}})
	if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Exited {
		t.Fatalf("Wait = %+v, %v", exit, err)
	}
	if got, want := logs(t, c, false), "1\n1\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
