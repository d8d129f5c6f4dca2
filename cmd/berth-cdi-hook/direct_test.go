package main

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/direct"
)

// TestUnderDirect is TestUnderRuntimes for berth's own start, which runs hooks as runc does; and where they are this
// program's, without it.
func TestUnderDirect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and mounts")
	}
	hook := build(t)
	other := filepath.Join(filepath.Dir(hook), "another-hook")
	if err := os.Link(hook, other); err != nil {
		t.Fatal(err)
	}
	t.Run("program", func(t *testing.T) { underDirect(t, other, true, nil) })
	t.Run("inside", func(t *testing.T) { underDirect(t, hook, false, nil) })
	// What is too much for a process that has other containers is the program's.
	t.Run("too much", func(t *testing.T) { underDirect(t, hook, true, make([]byte, 2<<20)) })
	// A program of that name that is not ours is run as every other is.
	script := filepath.Join(t.TempDir(), "berth-cdi-hook")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec "+other+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Run("of that name", func(t *testing.T) { underDirect(t, script, true, nil) })
}

// underDirect runs hooks of a program in a container whose image may have a linker's cache, and says whether the program was executed.
func underDirect(t *testing.T, hook string, executed bool, cache []byte) {
	t.Helper()
	layer := t.TempDir()
	makeRoot(t, layer)
	if cache != nil {
		if err := os.WriteFile(filepath.Join(layer, "etc/ld.so.cache"), cache, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := direct.New(direct.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dir := ""
	run := func(hooks ...[]string) (out, upper string, err error) {
		t.Helper()
		dir = t.TempDir()
		writeConfig(t, dir, hook, hooks)
		raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		spec := new(oci.Spec)
		if err := json.Unmarshal(raw, spec); err != nil {
			t.Fatal(err)
		}
		b := &bundle.Bundle{ID: "hooks", Dir: dir, Spec: spec, Root: bundle.Root{Layers: []string{layer}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Volatile: true}}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, d := range []string{b.Root.Upper, b.Root.Work} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		b.Stdout, b.Stderr = w, w
		p, err := s.Start(t.Context(), b)
		_ = w.Close()
		if err != nil {
			return "", b.Root.Upper, err
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		return string(text), b.Root.Upper, p.Close()
	}
	if out, _, err := run(); err != nil || !strings.Contains(out, "error while loading shared libraries") {
		t.Fatalf("without hooks: %v, %s; the test sees nothing", err, out)
	}
	out, upper, err := run(
		[]string{"create-symlinks", "--link", "libc.so.6::/opt/driver/libdriver.so", "--link", "x::/escape/link"},
		[]string{"enable-cuda-compat", "--host-driver-version=550.1.1"},
		[]string{"update-ldcache", "--folder", "/opt/driver"},
		[]string{"disable-device-node-modification"},
		[]string{"update-application-profile"},
		[]string{"chmod", "--mode", "711", "--path", "/tmp"},
	)
	if err != nil || !strings.Contains(out, "libdriver.so") {
		t.Errorf("%v: %s", err, out)
	}
	// Only for a program is there a bundle as it expects one.
	if _, err := os.Stat(filepath.Join(dir, "rootfs")); (err == nil) != executed {
		t.Errorf("a program was executed: %v, want %v", err == nil, executed)
	}
	if to, err := os.Readlink(filepath.Join(upper, "link")); err != nil || to != "x" {
		t.Errorf("a link that leads up ended at %q, %v; want the container's root", to, err)
	}
	if st, err := os.Stat(filepath.Join(upper, "tmp")); err != nil || st.Mode().Perm() != 0o711 {
		t.Error(st, err)
	}
	if out, _, err = run([]string{"create-symlinks", "--link", "nonsense"}); err == nil || !strings.Contains(err.Error(), "create-symlinks --link nonsense") {
		t.Errorf("a hook that fails: %v, %s", err, out)
	}
}
