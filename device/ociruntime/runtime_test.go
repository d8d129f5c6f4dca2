package ociruntime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/ledger"
)

// opens is a script that opens a device node, and makes and opens another one.
func opens(lent, other devicetest.GPU) string {
	return `exec 3<>` + lent.Node.Path + ` && echo opened; exec 3>&-
mknod /tmp/other c ` + minorOf(other) + ` && (exec 3<>/tmp/other) || echo refused
echo "$NVIDIA_VISIBLE_DEVICES $BERTH_GPUS"; ls /dev/nvidia*; cat /usr/lib/x86_64-linux-gnu/libcuda.so.` + devicetest.DriverVersion
}

func minorOf(g devicetest.GPU) string { return fmt.Sprintf("%d %d", g.Node.Major, g.Node.Minor) }

func TestRuntime(t *testing.T) {
	for name, runtime := range map[string][]string{"runc": {"runc"}, "crun": crun, "runc on cgroup v2": v2} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
			p.become(runtime)
			gpu, other := p.host.NVIDIA[0], p.host.NVIDIA[1]
			dir := p.bundle(opens(gpu, other), "NVIDIA_VISIBLE_DEVICES=0")
			out, err := p.runtime("run", "--bundle", dir, p.id())
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, want := range []string{"opened\n", "refused\n", "void " + gpu.UUID + "\n", "no library"} {
				if !strings.Contains(out, want) {
					t.Errorf("it says not %q but\n%s", want, out)
				}
			}
			if strings.Contains(out, other.Node.Path) {
				t.Errorf("it has another GPU:\n%s", out)
			}
		})
	}
}

// TestRuntimeSlices: two containers have two MIG slices of one GPU at once, each with the nodes of its own, and neither the other's.
func TestRuntimeSlices(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1, MIG: 2}, "runc")
	gpu := p.host.NVIDIA[0]
	slice := func(i int) devicetest.GPU { return devicetest.GPU{UUID: gpu.Slices[i].UUID, Node: gpu.Slices[i].Node} }
	first := p.id()
	t.Cleanup(func() { _, _ = p.runtime("delete", "--force", first) })
	if out, err := p.runtime("create", "--bundle", p.bundle("sleep 1000", "NVIDIA_VISIBLE_DEVICES=0:0"), first); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, again := range []string{"0:0", "all"} {
		if out, err := p.runtime("run", "--bundle", p.bundle("true", "NVIDIA_VISIBLE_DEVICES="+again), p.id()); err == nil || !strings.Contains(out, "it is lent to "+p.task(first)) {
			t.Errorf("%s, which the first has: %v: %s", again, err, out)
		}
	}
	out, err := p.runtime("run", "--bundle", p.bundle(opens(slice(1), slice(0))+"; ls /dev/nvidia-caps", "NVIDIA_VISIBLE_DEVICES="+slice(1).UUID), p.id())
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"opened\n", "refused\n", "void " + slice(1).UUID + "\n", gpu.Node.Path, filepath.Base(gpu.Slices[1].Cap.Path)} {
		if !strings.Contains(out, want) {
			t.Errorf("it says not %q but\n%s", want, out)
		}
	}
	for _, other := range []device.Node{gpu.Slices[0].Node, gpu.Slices[0].Cap} {
		if strings.Contains(out, filepath.Base(other.Path)+"\n") {
			t.Errorf("it has %s of the other:\n%s", other.Path, out)
		}
	}
	if got := p.holder(slice(0)); got != p.task(first) {
		t.Errorf("the first slice is held by %q", got)
	}
}

// TestRuntimeNothingAsked: the bundle is as it was, to the byte.
func TestRuntimeNothingAsked(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	dir := p.bundle("echo hello", "NVIDIA_VISIBLE_DEVICES=void")
	before, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := p.runtime("run", "--bundle", dir, p.id()); err != nil || !strings.Contains(out, "hello") {
		t.Fatalf("%v: %s", err, out)
	}
	after, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil || !slices.Equal(before, after) {
		t.Errorf("the bundle was changed, %v", err)
	}
}

// TestRuntimeLends: a GPU is of one container at a time, from create until delete, and free after the death of all.
func TestRuntimeLends(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
	gpu := p.host.NVIDIA[0]
	first, second := p.id(), p.id()
	dir := p.bundle("sleep 1000", "NVIDIA_VISIBLE_DEVICES="+gpu.UUID)
	t.Cleanup(func() { _, _ = p.runtime("delete", "--force", first) })
	if out, err := p.runtime("create", "--bundle", dir, first); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := p.holder(gpu); got != p.task(first) {
		t.Errorf("created: the GPU is held by %q", got)
	}
	log := filepath.Join(p.dir, "log.json")
	out, err := p.runtime("--log", log, "--log-format", "json", "create", "--bundle", p.bundle("true", "NVIDIA_VISIBLE_DEVICES=all"), second)
	if err == nil || !strings.Contains(out, "it is lent to "+p.task(first)) || strings.Count(out, "\n") != 1 {
		t.Errorf("%v: %s", err, out)
	}
	if said, err := os.ReadFile(log); err != nil || !strings.Contains(string(said), `"level":"error","msg":"oci-runtime: create: GPU nvidia 0`) {
		t.Errorf("%s, %v", said, err)
	}
	if got := p.holder(p.host.NVIDIA[1]); got != "" {
		t.Errorf("a part of what was refused is held by %q", got)
	}
	if out, err := p.runtime("start", first); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := p.holder(gpu); got != p.task(first) {
		t.Errorf("started: the GPU is held by %q", got)
	}
	if out, err := p.runtime("delete", "--force", first); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := p.holder(gpu); got != "" {
		t.Errorf("deleted: the GPU is held by %q", got)
	}
	// Again the same bundle, which is an edited one now; and nobody deletes it.
	third := p.id()
	t.Cleanup(func() { _, _ = p.runtime("delete", "--force", third) })
	if out, err := p.runtime("create", "--bundle", dir, third); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if n := len(p.spec(dir).Hooks.CreateRuntime); n != 1 {
		t.Errorf("%d hooks", n)
	}
	if out, err := p.runtime("kill", third, "KILL"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for end := time.Now().Add(10 * time.Second); p.holder(gpu) != ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("killed: the GPU is held by %q", p.holder(gpu))
		}
	}
}

// TestRuntimeRefuses: what cannot be given is one line, and changes nothing.
func TestRuntimeRefuses(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
	for name, c := range map[string]struct {
		env  string
		says string
	}{
		"an unknown GPU":       {"NVIDIA_VISIBLE_DEVICES=7", `berth: oci-runtime: create: GPU "7": not found: this host has 0 (`},
		"an unmet requirement": {"NVIDIA_VISIBLE_DEVICES=0 NVIDIA_REQUIRE_CUDA=cuda>=99.0", `the image requires "cuda>=99.0", and this host has cuda 12.4`},
		"a capability":         {"NVIDIA_VISIBLE_DEVICES=0 NVIDIA_DRIVER_CAPABILITIES=cuda", "supported are compat32"},
		"MIG control":          {"NVIDIA_VISIBLE_DEVICES=0 NVIDIA_MIG_CONFIG_DEVICES=all", "only a privileged container may have it"},
		"an AMD GPU":           {"AMD_VISIBLE_DEVICES=0", "AMD's driver: not found"},
		"an unknown CDI name":  {"NVIDIA_VISIBLE_DEVICES=vendor.com/class=0", "CDI device vendor.com/class=0: not found"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := p.bundle("true", strings.Fields(c.env)...)
			before := p.spec(dir)
			id := p.id()
			out, err := p.runtime("create", "--bundle", dir, id)
			if err == nil || !strings.Contains(out, c.says) || strings.Count(out, "\n") != 1 {
				t.Errorf("%v: %s", err, out)
			}
			if !slices.Equal(p.spec(dir).Process.Env, before.Process.Env) {
				t.Error("the bundle was changed")
			}
			if _, err := p.runtime("state", id); err == nil {
				t.Error("there is a container")
			}
			for _, g := range p.host.NVIDIA {
				if got := p.holder(g); got != "" {
					t.Errorf("%s is held by %q", g.UUID, got)
				}
			}
		})
	}
}

// TestRuntimeWithoutCommand: where no command is named, none is in the message.
func TestRuntimeWithoutCommand(t *testing.T) {
	var said strings.Builder
	exit := Runtime(t.Context(), Process{Args: []string{"--berth-config", "/nowhere", "--version"}, Dir: "/", Stderr: &said})
	if exit != 1 || !strings.HasPrefix(said.String(), "berth: oci-runtime: configuration /nowhere: not found") {
		t.Errorf("exit code %d, %s", exit, said.String())
	}
}

// TestRuntimeRemovesHooks that engines add for NVIDIA's GPUs: nothing is brought twice.
func TestRuntimeRemovesHooks(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	dir := p.bundle("echo hello", "NVIDIA_VISIBLE_DEVICES=0")
	p.edit(dir, func(s *oci.Spec) {
		s.Hooks = &oci.Hooks{Prestart: []oci.Hook{{Path: "/nowhere/nvidia-container-runtime-hook", Args: []string{"x", "prestart"}}, {Path: "/bin/true"}}} //nolint:staticcheck // engines use it
	})
	if out, err := p.runtime("run", "--bundle", dir, p.id()); err != nil || !strings.Contains(out, "hello") {
		t.Fatalf("%v: %s", err, out)
	}
	if hooks := p.spec(dir).Hooks.Prestart; len(hooks) != 1 || hooks[0].Path != "/bin/true" { //nolint:staticcheck // as above
		t.Errorf("%+v", hooks)
	}
}

// TestRuntimeLeadsBack: a runtime that is berth in disguise is refused, and does not run for ever.
func TestRuntimeLeadsBack(t *testing.T) {
	p := newPlace(t, devicetest.Options{}, "runc")
	script := filepath.Join(p.dir, "runtime")
	p.write(p.config, "[berth]\nruntime = \""+script+"\"\n")
	for _, how := range []string{"exec ", ""} {
		p.write(script, "#!/bin/sh\n"+how+p.self+" oci-runtime "+flagConfig+" "+p.config+" \"$@\"\n")
		if err := os.Chmod(script, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := p.runtime("state", "x"); err == nil || !strings.Contains(out, "leads back to berth") {
			t.Errorf("%s: %v: %s", how, err, out)
		}
	}
}

// TestRuntimeProves: a container that does not hold what it was lent is refused before its command runs, and holds
// nothing.
func TestRuntimeProves(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
	gpu, other := p.host.NVIDIA[0], p.host.NVIDIA[1]
	for name, c := range map[string]struct{ edit, says string }{
		"another GPU's number": {
			fmt.Sprintf(`s/"minor": *%d/"minor":%d/`, gpu.Node.Minor, other.Node.Minor),
			fmt.Sprintf("%s is c 10:%d, and not c 10:%d", gpu.Node.Path, other.Node.Minor, gpu.Node.Minor),
		},
		"no node": {
			fmt.Sprintf(`s,"path": *"%s","path":"/dev/elsewhere",`, gpu.Node.Path),
			fmt.Sprintf("%s (c 10:%d) is not there", gpu.Node.Path, gpu.Node.Minor),
		},
	} {
		t.Run(name, func(t *testing.T) {
			p.become([]string{"sh", "-c", "for a; do [ -f \"$a/config.json\" ] && sed -i '" + c.edit + "' \"$a/config.json\"; done\nexec runc \"$@\"", "runc"})
			dir := p.bundle("echo ran", "NVIDIA_VISIBLE_DEVICES=0")
			out, err := p.runtime("run", "--bundle", dir, p.id())
			if err == nil || !strings.Contains(out, c.says) || strings.Contains(out, "ran\n") {
				t.Errorf("%v: %s", err, out)
			}
			if got := p.holder(gpu); got != "" {
				t.Errorf("the GPU is held by %q", got)
			}
		})
	}
}

// TestRuntimeKilled: the GPU of a container whose runtime was killed while it made it is free once nothing of it runs.
func TestRuntimeKilled(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	gpu, id := p.host.NVIDIA[0], p.id()
	dir := p.bundle("sleep 1000", "NVIDIA_VISIBLE_DEVICES=0")
	p.become([]string{"sh", "-c", `echo $$ >` + p.dir + `/pid; exec sleep 1000`})
	cmd := exec.Command(p.self, "oci-runtime", flagConfig, p.config, "--root", filepath.Join(p.dir, "state"), "create", "--bundle", dir, id)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(p.dir + "/pid"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the runtime does not start")
		}
	}
	if got := p.holder(gpu); got != p.task(id) {
		t.Errorf("the GPU is held by %q", got)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := p.holder(gpu); got != "" {
		t.Errorf("killed: the GPU is held by %q", got)
	}
}

// TestRuntimeFrees: what is deleted frees no GPU with which a container runs that has been made under its ID since.
func TestRuntimeFrees(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	gpu, id := p.host.NVIDIA[0], p.id()
	t.Cleanup(func() { _, _ = p.runtime("delete", "--force", id) })
	if out, err := p.runtime("create", "--bundle", p.bundle("sleep 1000", "NVIDIA_VISIBLE_DEVICES=0"), id); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := openLedger(ledger.Dirs{})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := leaseOf(t.Context(), l, p.task(id))
	if err != nil || lease == "" {
		t.Fatalf("lease %q, %v", lease, err)
	}
	if err := free(t.Context(), l, lease); err != nil {
		t.Error(err)
	}
	if got := p.holder(gpu); got != p.task(id) {
		t.Errorf("the container runs, and the GPU is held by %q", got)
	}
	if out, err := p.runtime("delete", "--force", id); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := p.holder(gpu); got != "" {
		t.Errorf("deleted: the GPU is held by %q", got)
	}
}

// TestRuntimeQuarantine: a GPU that has reported what it does not recover from is not lent.
func TestRuntimeQuarantine(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	q := device.Quarantine{Dirs: []string{p.host.Path("/run/berth/quarantine")}}
	if err := q.Put(device.Fault{UUID: p.host.NVIDIA[0].UUID, Reason: "Xid 79", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	out, err := p.runtime("create", "--bundle", p.bundle("true", "NVIDIA_VISIBLE_DEVICES=0"), p.id())
	if err == nil || !strings.Contains(out, "Xid 79") || !strings.Contains(out, "berth gpu release") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestRuntimeBusy: a GPU that a process uses which was lent nothing is not lent.
func TestRuntimeBusy(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	gpu := p.host.NVIDIA[0]
	f, err := os.OpenFile(p.host.Path(gpu.Node.Path), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := p.bundle("echo ran", "NVIDIA_VISIBLE_DEVICES=0")
	out, err := p.runtime("run", "--bundle", dir, p.id())
	if err == nil || !strings.Contains(out, fmt.Sprintf("(process %d) uses it", os.Getpid())) {
		t.Errorf("%v: %s", err, out)
	}
	if got := p.holder(gpu); got != "" {
		t.Errorf("the GPU is held by %q", got)
	}
	config, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	p.write(p.config, string(config)+"allow-busy = true\n")
	if out, err := p.runtime("run", "--bundle", dir, p.id()); err != nil || !strings.Contains(out, "ran\n") {
		t.Errorf("allowed: %v: %s", err, out)
	}
}

// TestRuntimeDrivers: what is asked for without a GPU, by CDI names, and of AMD's.
func TestRuntimeDrivers(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1, AMD: 1}, "runc")
	nvidia := p.host.NVIDIA[0]
	spec := fmt.Sprintf(`{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0", "containerEdits": {"env": ["FROM=disk"], "deviceNodes": [{"path": %q}]}}]}`, nvidia.Node.Path)
	p.host.Write("/etc/cdi/nvidia.json", spec)
	for name, c := range map[string]struct {
		env, script, says string
	}{
		"the driver alone": {"NVIDIA_VISIBLE_DEVICES=none", "ls /dev/nvidia*; echo $NVIDIA_VISIBLE_DEVICES; cat /usr/lib/x86_64-linux-gnu/libcuda.so." + devicetest.DriverVersion, "/dev/nvidia-uvm\n/dev/nvidiactl\nvoid\nno library\n"},
		"a CDI name":       {"NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=0", "ls /dev/nvidia*; echo $FROM $BERTH_GPUS", nvidia.Node.Path + "\ndisk " + nvidia.UUID + "\n"},
		"AMD's":            {"AMD_VISIBLE_DEVICES=0", "ls /dev/dri /dev/kfd; id -G; echo $AMD_VISIBLE_DEVICES", "/dev/kfd\n\n/dev/dri:\nrenderD128\n0 105\nvoid\n"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := p.runtime("run", "--bundle", p.bundle(c.script, c.env), p.id())
			if err != nil || !strings.HasSuffix(out, c.says) {
				t.Errorf("%v: %q, want %q", err, out, c.says)
			}
		})
	}
}
