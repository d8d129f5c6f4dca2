package berth_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// layers lists the packages of the module from the bottom up. A package may import packages of the lines
// above its own, and those of its own folder.
var layers = []string{
	".",
	"queue ledger store staging image scratch logfile companion device/cdi device/require",
	"runner",
	"device",
	"device/nvidia device/amd device/intel",
	"device/inject device/record",
	"device/ociruntime",
	"engine/enginetest engine/oci engine/docker engine/swarm engine/kubernetes engine/slurm",
	"tes web",
	"internal/cli",
	"cmd/berth cmd/berth-cdi-hook cmd/berth-oci-runtime bench internal/ci examples/embed",
}

const module = "github.com/berth-project/berth"

func TestLayers(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(out); ; seen++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if err := checkImports(p.ImportPath, p.Imports); err != "" {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if seen < 3 {
		t.Fatalf("go list named %d packages; the check saw nothing", seen)
	}
}

func TestLayersCatch(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{module, module + "/runner"},
		{module + "/image", module + "/engine/oci"},
		{module + "/engine/oci", module + "/engine/docker"},
		{module + "/engine/oci/direct", module + "/internal/cli"},
		{module + "/unheard/of", module},
	} {
		if checkImports(c.from, []string{c.to}) == "" {
			t.Errorf("%s may import %s, and must not", c.from, c.to)
		}
	}
	if err := checkImports(module+"/engine/oci/direct", []string{module + "/engine/oci/bundle", module}); err != "" {
		t.Error(err)
	}
}

func checkImports(pkg string, imports []string) string {
	own, folder := layerOf(pkg)
	if own < 0 {
		return pkg + ": no layer names it; add it to layers"
	}
	for _, imp := range imports {
		if imp != module && !strings.HasPrefix(imp, module+"/") {
			continue
		}
		if l, f := layerOf(imp); l < 0 || l >= own && f != folder {
			return pkg + " imports " + imp + ", which lies in no layer below its own"
		}
	}
	return ""
}

// layerOf returns the line in layers, and the entry there, that pkg belongs to; -1 if there is none.
func layerOf(pkg string) (layer int, folder string) {
	rel := strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
	layer = -1
	if rel == "" {
		return 0, "."
	}
	for i, line := range layers {
		for f := range strings.FieldsSeq(line) {
			if (rel == f || strings.HasPrefix(rel, f+"/")) && len(f) > len(folder) {
				layer, folder = i, f
			}
		}
	}
	return layer, folder
}
