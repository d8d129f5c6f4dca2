package docker

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/engine/enginetest"
)

// TestOwnSpec: what the API has no words for comes by a spec of the sandbox's own, if the daemon reads such and it can be written.
func TestOwnSpec(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make device nodes")
	}
	nodes, err := enginetest.FakeGPUs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const hooked = `{"env":["BERTH_GPUS=GPU-0"],"hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true","update-ldcache"],"env":["A=1"]}]}`
	s := &Sandbox{
		e:    &Engine{owner: "me", cfg: Config{Dir: t.TempDir()}},
		spec: berth.SandboxSpec{ID: "sb", Grants: []berth.Grant{lentNVIDIA(nodes[0], 0, hooked)}},
	}
	if err := os.MkdirAll(s.stepsDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	lend := func(host *hostInfo) ([]container.DeviceRequest, []string, error) {
		cfg, hc := &container.Config{}, &container.HostConfig{}
		_, err := s.lend(host, cfg, hc)
		return hc.DeviceRequests, cfg.Env, err
	}
	etc, run := t.TempDir(), filepath.Join(t.TempDir(), "cdi") // which is not there yet
	const name = "lent.berth/gpu=berth.me.sb.nvidia"
	for range 2 { // steps
		got, env, err := lend(&hostInfo{cdiDirs: []string{etc, run}, runtimes: []string{"nvidia"}})
		want := []container.DeviceRequest{{Driver: "cdi", DeviceIDs: []string{name}}}
		if err != nil || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(env, []string{"BERTH_GPUS=GPU-0", "NVIDIA_VISIBLE_DEVICES=void"}) {
			t.Fatalf("asks for %+v with %q, %v; want %+v", got, env, err, want)
		}
	}
	cache := cdi.NewCache(cdi.Host{}, etc, run)
	edits, _, err := cache.Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(edits.Hooks) != 1 || len(edits.DeviceNodes) != 1 || edits.DeviceNodes[0].Minor != int64(nodes[0].Minor) || len(edits.Env)+len(edits.AdditionalGIDs) != 0 {
		t.Errorf("the spec has %+v", edits)
	}
	if specs := cache.Specs(); len(specs) != 1 || specs[0].Document().Version != "0.5.0" {
		t.Errorf("the specs are %+v; Podman 4.3 reads none beyond 0.5.0", specs)
	}
	if err := s.removeSpecs(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(run); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(file, "cdi")
	if got, _, err := lend(&hostInfo{cdiDirs: []string{bad}, runtimes: []string{"nvidia"}}); err != nil || len(got) != 1 || got[0].Driver != "nvidia" {
		t.Errorf("where none can be written, and NVIDIA's runtime is there: %+v, %v", got, err)
	}
	for _, host := range []*hostInfo{{cdiDirs: []string{bad}}, {cdiDirs: []string{etc}, rootless: true}, {podman: true, cdiDirs: []string{etc}, rootless: true}} {
		if _, _, err := lend(host); !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "berth cdi generate") || host.rootless != !strings.Contains(err.Error(), bad+"/") {
			t.Errorf("on %+v: %v", host, err)
		}
	}
}
