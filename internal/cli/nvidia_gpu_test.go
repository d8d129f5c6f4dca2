//go:build gpu && cgo

package cli

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Where there is a real NVIDIA GPU: go test -tags gpu -v -run TestOnNVIDIA ./internal/cli, as root. Without one it fails: who
// gives the tag says that there is one. What it prints is the entry of docs/verified.md.
func TestOnNVIDIA(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the tests of the tag gpu start containers with limits: run them as root")
	}
	const query = "--query-gpu=index,uuid,pci.bus_id,name,driver_version"
	raw, err := exec.CommandContext(t.Context(), "nvidia-smi", query, "--format=csv,noheader").CombinedOutput()
	if err != nil {
		t.Fatalf("this machine has no NVIDIA GPU that nvidia-smi tells of (%v: %s): leave out -tags gpu", err, strings.TrimSpace(string(raw)))
	}
	gpus, err := parseSMI(string(raw))
	if err != nil || len(gpus) == 0 {
		t.Fatalf("nvidia-smi tells of no GPU (%v): %q", err, raw)
	}
	t.Logf("nvidia-smi:\n%s", raw)
	if out, err := exec.CommandContext(t.Context(), "uname", "-srm").Output(); err == nil {
		t.Logf("%s", out)
	}
	b := newBench(t)
	onNVIDIA(t, b, gpus, "4")
	b.listsOne(t, gpus[0])
}

// listsOne: nvidia-smi in a container tells of the one GPU that was lent.
func (b *bench) listsOne(t *testing.T, g nvidiaGPU) {
	program, err := exec.LookPath("nvidia-smi")
	if err != nil {
		t.Fatal(err)
	}
	out, code := b.output("run", "--quiet", "--gpus", g.uuid, "cuda", program, "-L")
	if code != 0 || strings.Count(out, "GPU-") != 1 || !strings.Contains(out, g.uuid) {
		t.Errorf("nvidia-smi -L in a container: %d, %s", code, out)
	}
}
