package cdi

import (
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzParse: whatever the file, an error or a spec that can be applied, compared, and written so that it reads
// the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		oneGPU, "", "null", "[]", "xyzzy: garbled", "a: &a [*a]", "{", "cdiVersion: 1.1.0\nkind: a/b\ndevices: [null]",
		"cdiVersion: 1.1.0\nkind: a/b\ndevices:\n- name: x\n  containerEdits:\n    deviceNodes: [null, {path: /dev/x}]\n    hooks: [null]\n    mounts: [null]\n    netDevices: [null]\n",
		`{"cdiVersion":"v1.1.0","kind":"a/b.c","annotations":{"a":"b"},"containerEdits":{"intelRdt":{"closID":"x","schemata":["a"]}},"devices":[{"name":"0","containerEdits":{"mounts":[{"hostPath":"/a","containerPath":"/b","type":"bind"}],"hooks":[{"hookName":"poststop","path":"/h","timeout":3}],"additionalGids":[4],"netDevices":[{"hostInterfaceName":"a","name":"b"}]}}]}`,
	} {
		f.Add([]byte(s))
	}
	host := Host{Root: f.TempDir(), Node: nodes{}.find}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(data)
		if err != nil {
			return
		}
		for _, name := range s.Devices() {
			if !IsQualified(name) {
				t.Errorf("device %q", name)
			}
		}
		for _, d := range s.Document().Devices {
			spec := &oci.Spec{}
			_ = Apply(spec, &d.ContainerEdits, host)
			_, _ = Differences(host, &d.ContainerEdits)
			_, _ = Translate(&d.ContainerEdits, host)
		}
		text, err := Marshal(s.Document())
		if err != nil {
			t.Fatalf("cannot be written: %v", err)
		}
		again, err := Parse(text)
		if err != nil {
			t.Fatalf("cannot be read again: %v\n%s", err, text)
		}
		third, err := Marshal(again.Document())
		if err != nil || string(third) != string(text) {
			t.Errorf("written as\n%s\nand then as\n%s (%v)", text, third, err)
		}
	})
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"", "a/b=c", "vendor.com/class=dev:1", "/dev/null", "=", "a/=b", "é/b=c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if (err == nil) != IsQualified(s) {
			t.Errorf("ParseName says %v, IsQualified %v", err, IsQualified(s))
		}
		if err == nil && (n.String() != s || SplitName(s) != n) {
			t.Errorf("%q became %v", s, n)
		}
		_, _ = AnnotationKey(s, s)
	})
}
