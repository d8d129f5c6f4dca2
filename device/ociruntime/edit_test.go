package ociruntime

import (
	"slices"
	"testing"

	"github.com/berth-project/berth/device/cdi"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

// A hook that a spec on disk gives no environment must not get the container's, which is the image's.
func TestEditClosesHooks(t *testing.T) {
	spec := &oci.Spec{Process: &oci.Process{Env: []string{"LD_PRELOAD=/proc/self/cwd/evil.so"}}}
	p := &plan{edits: &cdi.Edits{Hooks: []*specs.Hook{{HookName: "createContainer", Path: "/bin/true"}}}}
	if err := edit(spec, p, Config{}, cdi.Host{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(spec.Hooks.CreateContainer) != 1 || !slices.Equal(spec.Hooks.CreateContainer[0].Env, []string{cdi.HookEnv}) {
		t.Errorf("the hooks are %+v", spec.Hooks.CreateContainer)
	}
}
