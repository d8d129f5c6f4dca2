package oci_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// lentLikeNVIDIA is a grant of a fake GPU that brings as much as one of NVIDIA's does: 45 libraries and files, and
// the hooks of the program, if it is given.
func lentLikeNVIDIA(t testing.TB, n berth.Node, hook string) berth.Grant {
	t.Helper()
	dir := t.TempDir()
	n.Container = "/dev/nvidia0"
	var mounts, hooks []map[string]any
	for i := range 45 {
		lib := filepath.Join(dir, fmt.Sprintf("libnvidia-%d.so.550.1", i))
		if err := os.WriteFile(lib, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, map[string]any{"hostPath": lib, "containerPath": "/usr/lib/x86_64-linux-gnu/" + filepath.Base(lib), "options": []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}})
	}
	if hook != "" {
		for _, args := range [][]string{
			{"create-symlinks", "--link", "libnvidia-1.so.550.1::/usr/lib/x86_64-linux-gnu/libcuda.so"},
			{"enable-cuda-compat", "--host-driver-version=550.1"},
			{"update-ldcache", "--folder", "/usr/lib/x86_64-linux-gnu"},
			{"disable-device-node-modification"},
			{"update-application-profile"},
		} {
			hooks = append(hooks, map[string]any{"hookName": "createContainer", "path": hook, "args": append([]string{"berth-cdi-hook"}, args...), "env": []string{"NVIDIA_CTK_DEBUG=false"}})
		}
	}
	edits, err := json.Marshal(map[string]any{"env": []string{"BERTH_GPUS=GPU-0", "CUDA_DEVICE_ORDER=PCI_BUS_ID"}, "mounts": mounts, "hooks": hooks})
	if err != nil {
		t.Fatal(err)
	}
	return berth.Grant{Vendor: "nvidia", UUID: "GPU-0", Nodes: []berth.Node{n}, Edits: edits}
}

// cdiHook is cmd/berth-cdi-hook as it is shipped.
func cdiHook(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "berth-cdi-hook")
	cmd := exec.Command("go", "build", "-o", file, "github.com/berth-project/berth/cmd/berth-cdi-hook")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

// BenchmarkLent says what lent devices add to a start, in one run: the starts of each kind come one after another in
// turn, and their medians are compared.
func BenchmarkLent(b *testing.B) {
	e, img := newEngine(b, "direct")
	gpus := lendable(b)
	node := gpus[0]
	node.Container = "/dev/nvidia0"
	kinds := []struct {
		name   string
		grants []berth.Grant
	}{
		{"none", nil},
		{"node", []berth.Grant{{Vendor: "amd", UUID: "GPU-0", Nodes: []berth.Node{node}}}},
		{"nvidia-without-hooks", []berth.Grant{lentLikeNVIDIA(b, gpus[0], "")}},
		{"nvidia", []berth.Grant{lentLikeNVIDIA(b, gpus[0], cdiHook(b))}},
	}
	took := make([][]time.Duration, len(kinds))
	for i := 0; b.Loop(); i++ {
		for k, kind := range kinds {
			sb, err := e.Open(b.Context(), berth.SandboxSpec{ID: fmt.Sprintf("b%d-%d", i, k), Grants: kind.grants})
			if err != nil {
				b.Fatal(err)
			}
			begin := time.Now()
			c, err := sb.Start(b.Context(), berth.StepSpec{ID: "s", Image: img, Command: []string{"true"}})
			took[k] = append(took[k], time.Since(begin))
			if err != nil {
				b.Fatal(err)
			}
			if x, err := c.Wait(b.Context()); err != nil || !x.OK() {
				b.Fatalf("%+v, %v", x, err)
			}
			if err := sb.Close(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds()) / 1000
	}
	b.ReportMetric(median(took[0]), "ms-none")
	for k := 1; k < len(kinds); k++ {
		b.ReportMetric(median(took[k])-median(took[0]), "ms-added-by-"+kinds[k].name)
	}
}
