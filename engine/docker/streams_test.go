package docker_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// TestStreamFilesAreFiles: what a container has made in the place of a file of the standard streams is not opened, be it a
// device of this machine: it would be read and written here, as root.
func TestStreamFilesAreFiles(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/v"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	run := func(spec berth.StepSpec) (berth.Container, error) {
		spec.ID, spec.Image = berth.NewID(), img
		c, err := s.Start(t.Context(), spec)
		if err == nil {
			if exit := wait(t, c); !exit.OK() {
				t.Fatalf("exit %+v", exit)
			}
		}
		return c, err
	}
	const make = "cd /v && mknod full c 1 7 && mknod zero c 1 5 && mkfifo pipe && ln -s zero link && echo old >file && ln -s file alias"
	if _, err := run(berth.StepSpec{Command: []string{"sh", "-c", make}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"full", "zero", "pipe", "link"} {
		for way, spec := range map[string]berth.StepSpec{"read": {Stdin: "/v/" + name}, "written": {Stdout: "/v/" + name}} {
			spec.Command = []string{"head", "-c", "1"}
			if _, err := run(spec); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "no regular file") {
				t.Errorf("%s is %s: %v", name, way, err)
			}
		}
	}
	c, err := run(berth.StepSpec{Stdin: "/v/alias", Stdout: "/v/new", Command: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := logs(t, c, false); got != "old\n" {
		t.Errorf("read %q through a link", got)
	}
	if _, err := run(berth.StepSpec{Stdout: "/v/alias", Command: []string{"echo", "new"}}); err != nil {
		t.Fatal(err)
	}
	if c, err = run(berth.StepSpec{Command: []string{"cat", "/v/file", "/v/new"}}); err != nil {
		t.Fatal(err)
	}
	if got := logs(t, c, false); got != "new\nold\n" {
		t.Errorf("written: %q", got)
	}
}

// TestInputCutOff: a command whose standard input ends before its file does, because who hands it over ends, has not ended
// as it would have; one that wants no more of it has.
func TestInputCutOff(t *testing.T) {
	t.Parallel()
	input := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(input, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, gate := t.TempDir(), t.TempDir()
	e, img := newEngine(t, docker.Config{Dir: dir})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	start := func(id, script string) berth.Container {
		c, err := s.Start(t.Context(), berth.StepSpec{
			ID: id, Image: img, Stdin: "/in", Command: []string{"sh", "-c", script},
			Mounts: []berth.Mount{{Source: input, Target: "/in", ReadOnly: true}, {Source: gate, Target: "/gate", ReadOnly: true}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if exit := wait(t, start("some", "head -c 10 >/dev/null; exec <&-; sleep 0.5; exit 3")); exit.Reason != berth.Exited || exit.Code != 3 {
		t.Errorf("one that wants no more: exit %+v", exit)
	}
	c := start("all", "echo up; until [ -e /gate/open ]; do sleep 0.05; done; wc -c")
	until(t, "it runs", func() bool { return logs(t, c, false) == "up\n" })
	select {
	case <-c.(*docker.Container).Fed():
		t.Error("a pipe has taken all of it")
	default:
	}
	if err := errors.Join(e.Close(), os.WriteFile(filepath.Join(gate, "open"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	again, _ := newEngine(t, docker.Config{Dir: dir})
	if s, err = again.Attach(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if c, err = s.Container(t.Context(), "all"); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Reason != berth.Lost || !strings.Contains(exit.Detail, "standard input /in was not handed over to its end") {
		t.Errorf("exit %+v", exit)
	}
}

// TestLateDelivery: a file in a volume on another machine that cannot be given what a step wrote when that ends has it before
// anybody looks, and before the step is removed.
func TestLateDelivery(t *testing.T) {
	t.Parallel()
	remoteConfig(t)
	h := newHanger(t, sharedRemote.daemon.Host())
	e, img := newEngine(t, docker.Config{Host: h.host, Stall: 2 * time.Second})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/v"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	run := func(id string) berth.Container {
		t.Helper()
		c, err := s.Start(t.Context(), berth.StepSpec{ID: id, Image: img, Stdout: "/v/" + id, Command: []string{"sh", "-c", "echo up; sleep 4; echo " + id}})
		if err != nil {
			t.Fatal(err)
		}
		h.calls.Store("/archive")
		if exit := wait(t, c); !exit.OK() || exit.Detail != "" {
			t.Errorf("exit %+v", exit)
		}
		return c
	}
	read := func(id string) string {
		t.Helper()
		r, err := s.(berth.VolumeArchiver).ArchiveVolume(t.Context(), "/v/"+id)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		archive := tar.NewReader(r)
		if _, err := archive.Next(); err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	run("one")
	if _, err := s.(berth.VolumeArchiver).ArchiveVolume(t.Context(), "/v/one"); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("half of it was taken for whole: %v", err)
	}
	h.calls.Store("")
	if got := read("one"); got != "up\none\n" {
		t.Errorf("one: %q", got)
	}
	c := run("two")
	if err := c.Remove(t.Context()); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("it was removed, and with it what it wrote: %v", err)
	}
	h.calls.Store("")
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := read("two"); got != "up\ntwo\n" {
		t.Errorf("two: %q", got)
	}
}
