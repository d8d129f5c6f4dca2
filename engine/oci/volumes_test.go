package oci_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
)

// What an image holds in its volumes counts against the task's disk like all else: what does not fit ends the
// step, which never runs.
func TestImageTooLargeForItsVolumes(t *testing.T) {
	e, _ := newEngine(t, "direct")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := make([]byte, 16<<20)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(body)
	if err := errors.Join(
		w.WriteHeader(&tar.Header{Name: "data/big", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}),
		func() error { _, err := w.Write(body); return err }(), w.Close(),
	); err != nil {
		t.Fatal(err)
	}
	img, err := e.Images().Import(t.Context(), &b, "large", image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own := img
	own.Config.Volumes = []string{"/data"}
	for i, tt := range []struct {
		name  string
		spec  berth.SandboxSpec
		image berth.Image
		want  string
	}{
		{"a volume", berth.SandboxSpec{Volumes: []berth.Volume{{Path: "/data", Size: 4 << 20, CopyUp: true}}}, img, "volume /data of 4 MiB"},
		{"all of the task", berth.SandboxSpec{Limits: berth.Limits{Disk: 8 << 20}, Volumes: []berth.Volume{{Path: "/data", CopyUp: true}}}, img, " of 8 MiB"},
		{"a volume of the image's own", berth.SandboxSpec{Limits: berth.Limits{Disk: 8 << 20}}, own, " of 8 MiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.ID = fmt.Sprint("t", i)
			sb := openSandbox(t, e, tt.spec)
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: tt.image, Command: []string{"/true"}})
			exit, err := c.Wait(t.Context())
			if err != nil || exit.Reason != berth.OutOfDisk || !strings.Contains(exit.Detail, tt.want) {
				t.Errorf("%+v, %v; want OutOfDisk with %q", exit, err, tt.want)
			}
			if out := logs(t, c, false) + logs(t, c, true); out != "" {
				t.Errorf("it said %q", out)
			}
			if err := c.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A container is removed while another of its ID is started, over and over: the new one either comes too early, or
// has all that it needs.
func TestRemoveAndStartAtOnce(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1"})
	step := func(i int) berth.StepSpec {
		return berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", fmt.Sprintf("echo %d >/x; cat /x", i)}}
	}
	c := start(t, sb, step(0))
	for i := range 100 {
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if err := c.Remove(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		var next berth.Container
		all.Go(func() {
			var err error
			for next, err = sb.Start(t.Context(), step(i+1)); errors.Is(err, berth.ErrConflict); {
				next, err = sb.Start(t.Context(), step(i+1))
			}
			if err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
		all.Wait()
		if next == nil {
			t.FailNow()
		}
		// A second removal of the old one that came late may have hit the new one: they have one name. The end of one that
		// ended before it was removed was told.
		exit, err := next.Wait(t.Context())
		_, there := sb.Container(t.Context(), "s1")
		if errors.Is(err, berth.ErrNotFound) || exit.Reason == berth.Stopped || errors.Is(there, berth.ErrNotFound) {
			next = start(t, sb, step(i+1))
			exit, err = next.Wait(t.Context())
		}
		if err != nil || exit.Reason != berth.Exited || exit.Code != 0 || logs(t, next, false) != fmt.Sprintln(i+1) {
			t.Fatalf("%d: %+v, %v, %q", i, exit, err, logs(t, next, true))
		}
		c = next
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(e.Dir(), "sandboxes/t1/*s1*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if log, err := os.ReadFile(filepath.Join(e.Dir(), "run/monitor.log")); err != nil || strings.Contains(string(log), "DATA RACE") || strings.Contains(string(log), "ERROR") {
		t.Errorf("the monitor says: %s, %v", log, err)
	}
}
