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
	kinds := newLentKinds(b)
	for b.Loop() {
		kinds.start(b)
	}
	none := kinds.median(0)
	b.ReportMetric(none, "ms-none")
	for k := 1; k < len(kinds.names); k++ {
		b.ReportMetric(kinds.median(k)-none, "ms-added-by-"+kinds.names[k])
	}
}

// TestLentIsQuick: lent devices add about a millisecond to a start, and three with all of NVIDIA's hooks. The bounds are for busy machines and the race detector.
func TestLentIsQuick(t *testing.T) {
	kinds := newLentKinds(t)
	for range 15 {
		kinds.start(t)
	}
	least := func(k int) time.Duration { return slices.Min(kinds.took[k]) }
	for k, most := range []time.Duration{0, 20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond} {
		added := least(k) - least(0)
		t.Logf("%s: %v added to %v", kinds.names[k], added, least(0))
		if added > most {
			t.Errorf("what is lent (%s) adds %v to a start", kinds.names[k], added)
		}
	}
}

// lentKinds are kinds of lent devices, and how long starts with them took. The first is none.
type lentKinds struct {
	e      berth.Engine
	img    berth.Image
	names  []string
	grants [][]berth.Grant
	took   [][]time.Duration
}

func newLentKinds(tb testing.TB) *lentKinds {
	tb.Helper()
	e, img := newEngine(tb, "direct")
	gpus := lendable(tb)
	node := gpus[0]
	node.Container = "/dev/nvidia0"
	return &lentKinds{
		e: e, img: img,
		names: []string{"none", "node", "nvidia-without-hooks", "nvidia"},
		grants: [][]berth.Grant{
			nil, {{Vendor: "amd", UUID: "GPU-0", Nodes: []berth.Node{node}}}, {lentLikeNVIDIA(tb, gpus[0], "")}, {lentLikeNVIDIA(tb, gpus[0], cdiHook(tb))},
		},
		took: make([][]time.Duration, 4),
	}
}

// start starts a container of each kind.
func (l *lentKinds) start(tb testing.TB) {
	tb.Helper()
	for k, grants := range l.grants {
		sb, err := l.e.Open(tb.Context(), berth.SandboxSpec{ID: fmt.Sprintf("b%d-%d", len(l.took[k]), k), Grants: grants})
		if err != nil {
			tb.Fatal(err)
		}
		begin := time.Now()
		c, err := sb.Start(tb.Context(), berth.StepSpec{ID: "s", Image: l.img, Command: []string{"true"}})
		l.took[k] = append(l.took[k], time.Since(begin))
		if err != nil {
			tb.Fatal(err)
		}
		if x, err := c.Wait(tb.Context()); err != nil || !x.OK() {
			tb.Fatalf("%+v, %v", x, err)
		}
		if err := sb.Close(tb.Context()); err != nil {
			tb.Fatal(err)
		}
	}
}

func (l *lentKinds) median(k int) float64 {
	d := slices.Sorted(slices.Values(l.took[k]))
	return float64(d[len(d)/2].Microseconds()) / 1000
}
