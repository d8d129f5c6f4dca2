package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
)

func TestMain(m *testing.M) {
	oci.MonitorMain()
	os.Exit(m.Run())
}

// The example does what docs/library.md says of it.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	engine, err := oci.New(oci.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Images().Import(t.Context(), busybox(t), "busybox", image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	result, err := run(t.Context(), dir, "busybox", []string{"/bin/busybox", "sh", "-c", "echo hello; echo also >&2; exit 3"}, &out, &errs)
	if err != nil {
		t.Fatal(err)
	}
	if result.State != berth.ExecutorError || result.Reason != berth.Exited || result.ExitCode != 3 || out.String() != "hello\n" || errs.String() != "also\n" {
		t.Errorf("%+v, output %q and %q", result, out.String(), errs.String())
	}
	if _, err := run(t.Context(), dir, "", nil, &out, &errs); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a task without an image: %v", err)
	}
}

// busybox is a root file system with this host's busybox.
func busybox(t *testing.T) *bytes.Buffer {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(program); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}
