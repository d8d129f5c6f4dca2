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

// TestLentNodes: the comparison is told what a spec lets a container do with its nodes.
func TestLentNodes(t *testing.T) {
	spec := &oci.Spec{Linux: &oci.Linux{Devices: []oci.LinuxDevice{{Path: "/dev/own", Type: "c", Major: 10, Minor: 1}}}}
	edits := &cdi.Edits{}
	for _, d := range [][2]string{{"/dev/a", ""}, {"/dev/b:c", "r"}, {"/dev/both", "r"}, {"/dev/both", "w"}, {"/dev/none", "none"}} {
		edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{Path: d[0], Type: "c", Major: 10, Minor: 229, Permissions: d[1]})
	}
	if err := edit(spec, &plan{edits: edits}, Config{}, cdi.Host{}, nil); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range lentOf(spec, edits) {
		got = append(got, lentNode(n))
		if again, err := parseLentNode(lentNode(n)); err != nil || again != n {
			t.Errorf("%v is read back as %v, %v", n, again, err)
		}
	}
	if want := []string{"c:10:229:rwm:/dev/a", "c:10:229:r:/dev/b:c", "c:10:229:rw:/dev/both"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	made, err := (&bringer{}).nodes(edits) // by the hook, whose container is compared with the same
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, n := range made {
		paths = append(paths, n.Path)
	}
	if want := []string{"/dev/a", "/dev/b:c", "/dev/both"}; !slices.Equal(paths, want) {
		t.Errorf("the hook makes %q, want %q", paths, want)
	}
}

func TestContains(t *testing.T) {
	for rule, want := range map[string]bool{"c 1:3 rwm": true, "c 1:3 r": true, "c 10:229 r": true, "c 10:229 wr": true, "c 10:229 rwm": false, "c 10:22 r": false, "b 1:3 r": false} {
		if got := contains([]string{"c 1:3 rwm", "c 10:229 rw", "c *:* m"}, rule); got != want {
			t.Errorf("%s: %v", rule, got)
		}
	}
	if !contains([]string{"a *:* rwm"}, "b 1:3 r") {
		t.Error("all may be used, and one not")
	}
}
