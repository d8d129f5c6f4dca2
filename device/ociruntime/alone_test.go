package ociruntime

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/ledger"
)

// TestRuntimeSameID: what is done to a container says nothing of those with its ID in other state directories.
func TestRuntimeSameID(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
	id, elsewhere := p.id(), filepath.Join(p.dir, "elsewhere")
	for i, root := range []string{filepath.Join(p.dir, "state"), elsewhere} {
		t.Cleanup(func() { _, _ = p.runtime("--root", root, "delete", "--force", id) })
		dir := p.bundle("sleep 1000", "NVIDIA_VISIBLE_DEVICES="+p.host.NVIDIA[i].UUID)
		if out, err := p.runtime("--root", root, "create", "--bundle", dir, id); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if out, err := p.runtime("--root", elsewhere, "delete", "-f", id); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := p.holder(p.host.NVIDIA[0]); got != p.task(id) {
		t.Errorf("the GPU of the container that runs is held by %q", got)
	}
	if got := p.holder(p.host.NVIDIA[1]); got != "" {
		t.Errorf("the GPU of the deleted container is held by %q", got)
	}
}

// TestHookSameID: a container is not taken for one that has its ID elsewhere, and starts with its GPU or not at all.
func TestHookSameID(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
	id := p.id()
	t.Cleanup(func() { _, _ = p.runtime("delete", "--force", id) })
	if out, err := p.runtime("create", "--bundle", p.bundle("sleep 1000", "NVIDIA_VISIBLE_DEVICES=0"), id); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(gpu string) (string, error) {
		node := p.host.NVIDIA[1].Node.Path
		script := "[ -c " + node + " ] && exec 3<>" + node + " && echo opened; echo ran"
		return p.output("runc", "--root", filepath.Join(p.dir, "direct"), "run", "--bundle", p.hooked(script, "NVIDIA_VISIBLE_DEVICES="+gpu), id)
	}
	if out, err := run("1"); err != nil || !strings.Contains(out, "opened\n") {
		t.Errorf("another GPU: %v: %s", err, out)
	}
	if out, err := run("0"); err == nil || !strings.Contains(out, "it is lent to "+p.task(id)) || strings.Contains(out, "ran\n") {
		t.Errorf("the same GPU: %v: %s", err, out)
	}
}

// TestHookAgain: a container that has what it asks for is left alone, whoever brought it.
func TestHookAgain(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	node := p.host.NVIDIA[0].Node.Path
	script := "[ -c " + node + " ] && exec 3<>" + node + " && echo opened"
	twice := p.hooked(script, "NVIDIA_VISIBLE_DEVICES=0")
	p.edit(twice, func(s *oci.Spec) { s.Hooks.Prestart = append(s.Hooks.Prestart, s.Hooks.Prestart[0]) }) //nolint:staticcheck // engines use it
	if out, err := p.directly([]string{"runc"}, twice); err != nil || !strings.Contains(out, "opened\n") {
		t.Errorf("two hooks: %v: %s", err, out)
	}
	if got := p.holder(p.host.NVIDIA[0]); got != "" {
		t.Fatalf("it has ended, and the GPU is held by %q", got)
	}
	config, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	p.write(p.config, "accept-nvidia-visible-devices-as-volume-mounts = true\n"+string(config))
	both := p.hooked(script) // asked for by a mount, which a hook still sees after the runtime
	p.edit(both, func(s *oci.Spec) {
		s.Mounts = append(s.Mounts, oci.Mount{Destination: "/var/run/nvidia-container-devices/0", Source: os.DevNull, Type: "bind", Options: []string{"bind"}})
	})
	if out, err := p.runtime("run", "--bundle", both, p.id()); err != nil || !strings.Contains(out, "opened\n") {
		t.Errorf("the runtime, then a hook: %v: %s", err, out)
	}
}

// prestart calls the hook for a container whose first process this is.
func (p *place) prestart(pid int, bundle string) (string, error) {
	p.t.Helper()
	state, err := json.Marshal(oci.State{Version: "1.0.2", ID: p.id(), Pid: pid, Bundle: bundle})
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.CommandContext(p.t.Context(), p.self, ociHook, flagConfig, p.config, "prestart")
	cmd.Stdin = bytes.NewReader(state)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// process starts a program, of which it waits for a line.
func (p *place) process(program string, args ...string) (pid int) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), program, args...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		p.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		_, err = out.Read(make([]byte, 64))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return cmd.Process.Pid
}

// TestHookOtherUnits: a container that was lent one GPU before is not started as if it had the one that it asks for.
func TestHookOtherUnits(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
	pid := p.process("sh", "-c", "echo ready; exec sleep 1000")
	l, err := openLedger(ledger.Dirs{})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := l.Acquire(t.Context(), ledger.Request{Task: "oci-test-before", NoWait: true, Devices: []ledger.Device{{ID: p.host.NVIDIA[0].UUID}}})
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	if err := hold(t.Context(), lease, pid); err != nil {
		t.Fatal(err)
	}
	out, err := p.prestart(pid, p.bundle("", "NVIDIA_VISIBLE_DEVICES=1"))
	if err == nil || !strings.Contains(out, "asks the hook for "+p.host.NVIDIA[1].UUID+", and was lent "+p.host.NVIDIA[0].UUID+" before, as oci-test-before") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestHookAfterChangeOfRoot: where the container's mounts show the image alone, no file of it is run as a hook.
func TestHookAfterChangeOfRoot(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc", "prove = false", "[nvidia-container-cli]", "no-cgroups = true")
	dir := p.bundle("", "NVIDIA_VISIBLE_DEVICES=0")
	root := filepath.Join(dir, "rootfs")
	program, err := cdiHook()
	if err != nil {
		t.Fatal(err)
	}
	inImage := filepath.Join(root, program)
	p.write(inImage, "#!/bin/sh\necho ran >/tmp/ran\n")
	if err := os.Chmod(inImage, 0o755); err != nil {
		t.Fatal(err)
	}
	pid := p.process("unshare", "--mount", "sh", "-c", `mount --bind "$1" "$1" && cd "$1" && mkdir old && pivot_root . old && cd / && echo ready && exec /bin/sleep 1000`, "sh", root)
	out, err := p.prestart(pid, dir)
	if err == nil || !strings.Contains(out, program) || !strings.Contains(out, "has changed its root; use berth oci-runtime") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(root, "tmp/ran")); err == nil {
		t.Error("a file of the image ran")
	}
	if got := p.holder(p.host.NVIDIA[0]); got != "" {
		t.Errorf("the GPU is held by %q", got)
	}
}

// TestLeaseOfAnother: a configuration that was copied from a container that runs brings its GPU to nobody else, though
// it names the lease and the ID is the same.
func TestLeaseOfAnother(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	id := p.id()
	t.Cleanup(func() { _, _ = p.runtime("delete", "--force", id) })
	dir := p.bundle("echo ran", "NVIDIA_VISIBLE_DEVICES=0")
	if out, err := p.runtime("create", "--bundle", dir, id); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil || !bytes.Contains(config, []byte(leaseFlag)) {
		t.Fatalf("the configuration names no lease: %s, %v", config, err)
	}
	copied := p.bundle("echo ran")
	if err := os.WriteFile(filepath.Join(copied, "config.json"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, as := range []string{id, p.id() + "-other"} {
		out, err := p.output("runc", "--root", filepath.Join(p.dir, "direct"), "run", "--bundle", copied, as)
		if err == nil || !strings.Contains(out, "is not its own") || strings.Contains(out, "ran\n") {
			t.Errorf("as %s: %v: %s", as, err, out)
		}
	}
	if got := p.holder(p.host.NVIDIA[0]); got != p.task(id) {
		t.Errorf("the GPU is held by %q", got)
	}
}
