package cdi

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
)

// What CDI changes is changed; what this version of the standard does not know, and forms that old versions have,
// stay, in their order.
func TestRewrite(t *testing.T) {
	config := `{"ociVersion":"1.0.0-rc3","novel":{"b":1,"a":[1.50]},"process":{"capabilities":["CAP_KILL"],"env":["A=1"],"user":{"uid":0,"gid":0,"umask":18,"novel":true},"args":["sh"]},
		"linux":{"seccomp":{"novel":1},"resources":{"memory":{"limit":9007199254740993},"devices":[{"allow":false,"access":"rwm"}]}},"mounts":[{"destination":"/proc","type":"proc","source":"proc"}]}`
	out, err := Rewrite([]byte(config), func(spec *oci.Spec) error {
		return Apply(spec, &Edits{
			Env: []string{"B=2"}, AdditionalGIDs: []uint32{44},
			DeviceNodes: []*specs.DeviceNode{{Path: "/dev/x", Type: "c", Major: 10, Minor: 229, Permissions: "rw"}},
			Mounts:      []*specs.Mount{{HostPath: "/a", ContainerPath: "/b/c", Options: []string{"ro", "bind"}}},
			Hooks:       []*specs.Hook{{HookName: "createContainer", Path: "/h", Args: []string{"h"}}},
		}, Host{Root: t.TempDir()})
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"ociVersion":"1.0.0-rc3","novel":{"b":1,"a":[1.50]},"process":{"capabilities":["CAP_KILL"],"env":["A=1","B=2"],"user":{"uid":0,"gid":0,"umask":18,"novel":true,"additionalGids":[44]},"args":["sh"]},` +
		`"linux":{"seccomp":{"novel":1},"resources":{"memory":{"limit":9007199254740993},"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]},"devices":[{"path":"/dev/x","type":"c","major":10,"minor":229}]},` +
		`"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/b/c","source":"/a","options":["ro","bind"]}],"hooks":{"createContainer":[{"path":"/h","args":["h"]}]}}`
	var got strings.Builder
	for line := range strings.Lines(string(out)) {
		got.WriteString(strings.TrimSpace(line))
	}
	if diff := cmp.Diff(want, strings.ReplaceAll(got.String(), `": `, `":`)); diff != "" {
		t.Error(diff)
	}
}

// Parts that are not there are made, at the end.
func TestRewriteMakes(t *testing.T) {
	out, err := Rewrite([]byte(`{"ociVersion":"1.0.0","process":null}`), func(spec *oci.Spec) error {
		return Apply(spec, &Edits{
			Env: []string{"B=2"}, AdditionalGIDs: []uint32{44},
			DeviceNodes: []*specs.DeviceNode{{Path: "/dev/x", Type: "c", Major: 10, Minor: 229}},
		}, Host{Root: t.TempDir()})
	})
	var got, want any
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal([]byte(`{"ociVersion":"1.0.0","process":{"env":["B=2"],"user":{"additionalGids":[44]}},"linux":{
		"devices":[{"path":"/dev/x","type":"c","major":10,"minor":229}],"resources":{"devices":[{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"}]}}}`), &want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Edits that change nothing change no byte but white space, and where there is no process or linux none is made.
func TestRewriteNothing(t *testing.T) {
	for _, config := range []string{
		`{"ociVersion": "1.2.0"}`,
		`{"ociVersion": "1.2.0", "process": null, "linux": null, "mounts": [], "hooks": {}}`,
		`{"ociVersion": "1.2.0", "process": {"env": []}, "linux": {"devices": [{"path": "/dev/x", "novel": 1}]}}`,
	} {
		out, err := Rewrite([]byte(config), func(*oci.Spec) error { return nil })
		if err != nil {
			t.Errorf("%s: %v", config, err)
			continue
		}
		var compact, want strings.Builder
		for _, s := range []struct {
			to   *strings.Builder
			from string
		}{{&compact, string(out)}, {&want, config}} {
			s.to.WriteString(strings.Join(strings.Fields(s.from), ""))
		}
		if compact.String() != want.String() {
			t.Errorf("%s became %s", config, out)
		}
	}
}

func TestRewriteRefuses(t *testing.T) {
	for config, says := range map[string]string{
		``: "EOF", `[]`: "no JSON object", `{}`: "ociVersion", `{"ociVersion":"1.0.0"} {}`: "follows",
		`{"ociVersion":"1.0.0","process":[]}`: "process", `{"ociVersion":"1.0.0","mounts":{}}`: "mounts",
		`{"ociVersion":"1.0.0","linux":{"resources":1}}`: "resources", `{"ociVersion":"1.0.0"`: "EOF",
	} {
		if _, err := Rewrite([]byte(config), func(*oci.Spec) error { return nil }); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", config, err)
		}
	}
	if _, err := Rewrite([]byte(`{"ociVersion":"1.0.0"}`), func(*oci.Spec) error { return berth.ErrNotFound }); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
}

func FuzzRewrite(f *testing.F) {
	f.Add([]byte(`{"ociVersion":"1.0.0","process":{"env":["A=1"],"user":{"uid":1}},"linux":{"resources":{"devices":[]}},"mounts":[{"destination":"/x"}]}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		out, err := Rewrite(config, func(spec *oci.Spec) error {
			return Apply(spec, &Edits{Env: []string{"BERTH_X=1"}, AdditionalGIDs: []uint32{7}}, Host{})
		})
		if err != nil {
			return
		}
		var spec struct {
			Process struct{ Env []string }
		}
		if err := json.Unmarshal(out, &spec); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		if n := len(spec.Process.Env); n == 0 {
			t.Errorf("%q has no environment", out)
		}
	})
}
