package oci_test

import (
	"bufio"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
	"golang.org/x/sys/unix"
)

// The umask of the command that happens to start the monitor is not that of what containers see; but the worker, which
// makes files for users, has it.
func TestUmaskOfStarter(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) {
			said := filepath.Join(t.TempDir(), "umask")
			if err := unix.Mkfifo(said, 0o600); err != nil {
				t.Fatal(err)
			}
			worker, err := os.OpenFile(said, os.O_RDWR|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = worker.Close() }()
			e, err := oci.New(oci.Config{
				Dir: t.TempDir(), Runtime: rt, Idle: 300 * time.Millisecond,
				Worker: []string{"sh", "-c", `umask >"$0"`, said},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = e.Close() }()
			img, err := e.Images().Import(t.Context(), busybox(t), "busybox", image.ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1", Labels: map[string]string{oci.LabelResume: "1"}, Volumes: []berth.Volume{{Path: "/new/deep/volume"}}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sb.Close(t.Context()) }()
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, User: "1000:1000", Command: []string{"sh", "-c", "umask; grep -c localhost /etc/hosts; ls -d /new/deep/volume; ls / >/dev/null; ls /etc >/dev/null; touch /new/deep/volume/x; ls /new/deep/volume"}})
			x, err := c.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got, want := logs(t, c, false), "0022\n2\n/new/deep/volume\nx\n"; got != want || !x.OK() {
				t.Errorf("an ordinary user of the container saw %q, want %q; %s; %+v", got, want, logs(t, c, true), x)
			}
			if err := worker.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if got, err := bufio.NewReader(worker).ReadString('\n'); err != nil || got != "0077\n" {
				t.Errorf("the umask of the worker is %q, %v", got, err)
			}
		})
	}
}
