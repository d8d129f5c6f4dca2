package wire_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/oci/wire"
)

func TestSpec(t *testing.T) {
	idMap := []specs.LinuxIDMapping{{Size: 1}}
	for name, mounts := range map[string][]specs.Mount{
		"none":       nil,
		"one":        {{Destination: "/a", Type: "bind", Source: "/b", Options: []string{"ro", "rbind"}}},
		"two":        {{Destination: "/a", Options: []string{"ro"}}, {Destination: "/b", Source: "/c"}},
		"escaped":    {{Destination: "/a\"b\\c\n<>&", Source: "/\u2028"}, {Destination: "/b"}},
		"no text":    {{Destination: "/\xff"}},
		"id mapped":  {{Destination: "/a", UIDMappings: idMap, GIDMappings: idMap}},
		"no options": {{Destination: "/a", Type: "proc"}, {Destination: ""}},
		"like JSON":  {{Destination: "/a],", Source: "}", Options: []string{"],", "{"}}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &specs.Spec{Version: "1.0.2", Mounts: mounts, Process: &specs.Process{Args: []string{"x"}}}
			plain, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := wire.EncodeSpec(spec)
			if err != nil {
				t.Fatal(err)
			}
			want := new(specs.Spec)
			if err := json.Unmarshal(plain, want); err != nil {
				t.Fatal(err)
			}
			for what, raw := range map[string][]byte{"encoded": raw, "plain": plain} {
				if got, err := wire.DecodeSpec(raw); err != nil || !reflect.DeepEqual(got, want) {
					t.Errorf("%s: %+v, %v; want %+v", what, got, err, want)
				}
			}
			got := new(specs.Spec) // what else reads it
			if err := json.Unmarshal(raw, got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("as JSON %s: %+v, %v; want %+v", raw, got, err, want)
			}
		})
	}
}

func TestBadSpec(t *testing.T) {
	for _, raw := range []string{
		"", "{", `{"mounts":[`, `{"mounts":[]}`, `{"mounts":[{"destination":"/a"}`, `{"mounts":[{"destination":"/a"}]`, `{"mounts":[{"destination":1}],"ociVersion":"1"}`,
		`{"mounts":[{"destination":"/a"}],}`, `{"mounts":[{"destination":"/a",}],"ociVersion":"1"}`, `{"mounts":[{"destination":"/a"},],"ociVersion":"1"}`,
		`{"mounts":[{"destination":"/a","options":[]}],"ociVersion":"1"}`, `{"mounts":[{"destination":"/a" }],"ociVersion":"1"}`, `{"mounts":[{"destination":"/a` + "\n" + `"}],"ociVersion":"1"}`,
		`{"mounts":[{"destination":"/a"}],"mounts":[{"destination":"/b"}]}`, `{"mounts":[{"Destination":"/a"}],"ociVersion":"1"}`,
		`{"mounts":[{"destination":"/a"}],"mounts":null,"ociVersion":"1"}`, `{"mounts":[{"destination":"/a"}],"Mounts":null,"ociVersion":"1"}`,
	} {
		want := new(specs.Spec)
		bad := json.Unmarshal([]byte(raw), want)
		got, err := wire.DecodeSpec([]byte(raw))
		if (err != nil) != (bad != nil) || bad == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v, %v", raw, got, err, want, bad)
		}
	}
}

func FuzzDecodeSpec(f *testing.F) {
	f.Add([]byte(`{"mounts":[{"destination":"/a","type":"bind","source":"/b","options":["ro"]},{"destination":""}],"ociVersion":"1"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		want := new(specs.Spec)
		bad := json.Unmarshal(raw, want)
		got, err := wire.DecodeSpec(raw)
		if bad == nil && (err != nil || !reflect.DeepEqual(got, want)) {
			t.Errorf("%q: %+v, %v; want %+v", raw, got, err, want)
		}
		if bad != nil && err == nil {
			t.Errorf("%q is taken for %+v, and is no JSON: %v", raw, got, bad)
		}
	})
}

// The mounts of a spec are read before the rest only where nothing of the rest can change them.
func TestMounts(t *testing.T) {
	raw, err := wire.EncodeSpec(&specs.Spec{Version: "1.0.2", Hostname: "h", Mounts: []specs.Mount{{Destination: "/a", Type: "proc"}}})
	if err != nil {
		t.Fatal(err)
	}
	if mounts, ok := wire.Mounts(raw); !ok || len(mounts) != 1 || mounts[0].Destination != "/a" {
		t.Errorf("%+v, %t", mounts, ok)
	}
	for name, raw := range map[string]string{
		"plain":       `{"ociVersion":"1.0.2","mounts":[]}`,
		"named again": string(raw[:len(raw)-1]) + `,"mounts":[]}`,
		"no JSON":     `{"mounts":[{`,
	} {
		if mounts, ok := wire.Mounts([]byte(raw)); ok {
			t.Errorf("%s: %+v", name, mounts)
		}
	}
}
