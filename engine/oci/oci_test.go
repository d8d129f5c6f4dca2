package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
)

func TestMain(m *testing.M) {
	oci.MonitorMain()
	os.Exit(m.Run())
}

// busybox is a root file system with busybox and its applets.
func busybox(t testing.TB) io.Reader {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal("needs busybox-static:", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "etc", "root", "tmp", "usr", "usr/bin"} {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		add(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	add(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, bin)
	for a := range strings.FieldsSeq("sh cat echo true false sleep ls id env pwd kill ps mount mknod dd head tail wc grep touch rm mkdir chmod chown ip hostname nc stat test printf date yes sort cut tr od cp mv ln readlink sync df free nproc ulimit seq awk sed expr basename dirname find tee uname su timeout tty stty") {
		add(&tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"))
	add(&tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nuser:x:1000:\nvideo:x:44:user\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func newEngine(t testing.TB, runtime string) (*oci.Engine, berth.Image) {
	t.Helper()
	e, err := oci.New(oci.Config{Dir: t.TempDir(), Runtime: runtime, Idle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(e.Dir() + "/run/monitor.log"); err == nil && t.Failed() {
			t.Logf("the monitor's log:\n%s", b)
		}
		_ = e.Close()
	})
	img, err := e.Images().Import(t.Context(), busybox(t), "busybox", image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return e, img
}

func TestRun(t *testing.T) {
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) {
			e, img := newEngine(t, rt)
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			c, err := sb.Start(t.Context(), berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "echo out; echo err >&2; id; exit 7"}})
			if err != nil {
				t.Fatal(err)
			}
			exit, err := c.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%v %+v", time.Since(begin), exit)
			if exit.Reason != berth.Exited || exit.Code != 7 {
				t.Errorf("exit = %+v", exit)
			}
			if got := logs(t, c, false); got != "out\nuid=0(root) gid=0(root) groups=0(root)\n" {
				t.Errorf("stdout = %q", got)
			}
			if got := logs(t, c, true); got != "err\n" {
				t.Errorf("stderr = %q", got)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if l, err := e.List(t.Context()); err != nil || len(l) != 0 {
				t.Errorf("List = %v, %v after Close", l, err)
			}
		})
	}
}

func logs(t testing.TB, c berth.Container, stderr bool) string {
	t.Helper()
	r, err := c.(berth.LogReader).Logs(context.Background(), berth.LogOptions{Stderr: stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestImageVolumes(t *testing.T) {
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) {
			e, img := newEngine(t, rt)
			img.Config.Volumes = []string{"/etc", "/new/volume"}
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sb.Close(context.Background()) }()
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, ReadOnly: true, Command: []string{"sh", "-c", "grep -c root /etc/passwd; echo x >/etc/x && echo y >/new/volume/y && cat /etc/x /new/volume/y; cat /etc/hosts | grep -c localhost; echo z >/z"}})
			exit, err := c.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got, want := logs(t, c, false), "1\nx\ny\n2\n"; got != want || exit.Code == 0 {
				t.Errorf("wrote %q and ended with %+v; want %q, and the root not to be writable; %s", got, exit, want, logs(t, c, true))
			}
		})
	}
}

func init() { //nolint:gochecknoinits // this alone runs on the main thread, which stands for the process in /proc: no test is to change it for good
	runtime.LockOSThread()
}
