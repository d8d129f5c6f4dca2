package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What an earlier step left where a step's streams are to be is opened by the monitor, outside of any
// container: a device must not be, as with a watchdog that is all that it takes.
func TestStreamsInVolumesOpenNoDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes device nodes")
	}
	m, dir, host := testMonitor(t), t.TempDir(), t.TempDir()
	sb := &sandbox{m: m, id: "s", volumes: []string{dir}, rec: record{Spec: berth.SandboxSpec{Volumes: []berth.Volume{{Path: "/v"}}}}}
	if err := errors.Join(
		unix.Mknod(filepath.Join(dir, "device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666),
		os.Symlink("device", filepath.Join(dir, "link")),
		os.Symlink(host, filepath.Join(dir, "host")),
	); err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Mounts: []specs.Mount{{Destination: "/v", Type: "bind", Source: dir}}}
	l := &launch{c: &container{sb: sb}, spec: spec, req: &wire.Start{}, bundle: &bundle.Bundle{}}
	for _, tt := range []struct {
		name    string
		out, in error
	}{
		{"device", unix.EACCES, unix.EACCES},
		{"link", unix.EACCES, unix.EACCES},
		{"fifo", unix.ENXIO, berth.ErrInvalid},
		{"made/below", nil, nil},
	} {
		f, err := sb.createInVolume("/v/"+tt.name, specs.User{})
		if !errors.Is(err, tt.out) {
			t.Errorf("stdout to %s: %v, want %v", tt.name, err, tt.out)
		}
		_ = f.Close()
		f, err = l.openForStdin("/v/" + tt.name)
		if !errors.Is(err, tt.in) {
			t.Errorf("stdin from %s: %v, want %v", tt.name, err, tt.in)
		}
		_ = f.Close()
	}
	if f, err := sb.createInVolume("/v/host/file", specs.User{}); err == nil {
		_ = f.Close()
		t.Error("a link out of the volume was followed")
	}
	if entries, err := os.ReadDir(host); err != nil || len(entries) > 0 {
		t.Errorf("outside of the volume: %v, %v", entries, err)
	}
}
