package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
)

const oneGPU = `cdiVersion: 0.5.0
kind: acme.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/acme0
`

func TestCacheIsNeverBehindTheFiles(t *testing.T) {
	host := testHost(t, map[string]string{"etc/cdi/a.yaml": oneGPU}, nodes{"/dev/acme0": {Type: "c", Major: 240}})
	list := nodes{"/dev/acme0": {Type: "c", Major: 240}}
	host.Node = list.find
	c := NewCache(host)

	inject := func() int64 {
		t.Helper()
		spec := &oci.Spec{}
		if _, err := c.Inject(spec, "acme.com/gpu=0"); err != nil {
			t.Fatal(err)
		}
		return spec.Linux.Devices[0].Major
	}
	if got := inject(); got != 240 {
		t.Errorf("major %d, want 240", got)
	}
	list["/dev/acme0"] = Node{Type: "c", Major: 241} // the driver was loaded again
	if got := inject(); got != 241 {
		t.Errorf("major %d, want 241: that of an earlier injection stuck", got)
	}

	// A file that another program renames into place, of the same length and time.
	old, err := os.Stat(filepath.Join(host.Root, "etc/cdi/a.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(host.Root, "tmp")
	put(t, tmp, strings.Replace(oneGPU, `"0"`, `"1"`, 1))
	if err := os.Chtimes(tmp, old.ModTime(), old.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(host.Root, "etc/cdi/a.yaml")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"acme.com/gpu=1"}, c.Devices()); diff != "" {
		t.Error(diff)
	}
}

func TestCacheErrors(t *testing.T) {
	second := strings.ReplaceAll(oneGPU, `"0"`, `"1"`)
	for _, c := range []struct {
		name  string
		files map[string]string
		ask   []string
		want  string // in the error
		kind  error
	}{
		{"unqualified", nil, []string{"gpu0"}, `invalid CDI device name: unqualified device "gpu0", missing vendor; it is VENDOR/CLASS=DEVICE`, berth.ErrInvalid},
		{"nothing there", nil, []string{"acme.com/gpu=0"}, "CDI device acme.com/gpu=0: not found: no spec in /etc/cdi, /var/run/cdi describes acme.com/gpu devices", berth.ErrNotFound},
		{
			"another is there",
			map[string]string{"etc/cdi/a.yaml": second},
			[]string{"acme.com/gpu=0"},
			"CDI device acme.com/gpu=0: not found: there are acme.com/gpu=1", berth.ErrNotFound,
		},
		{
			"two missing",
			map[string]string{"etc/cdi/a.yaml": second},
			[]string{"acme.com/gpu=1", "acme.com/gpu=8", "acme.com/gpu=9"},
			"CDI device acme.com/gpu=8: not found: there are acme.com/gpu=1; CDI device acme.com/gpu=9: not found", berth.ErrNotFound,
		},
		{
			"conflict",
			map[string]string{"etc/cdi/a.yaml": oneGPU, "etc/cdi/b.json": `{"cdiVersion":"0.5.0","kind":"acme.com/gpu","devices":[{"name":"0","containerEdits":{"env":["A=b"]}}]}`},
			[]string{"acme.com/gpu=0"},
			"CDI device acme.com/gpu=0: conflict: both /etc/cdi/a.yaml and /etc/cdi/b.json describe it", berth.ErrConflict,
		},
		{
			"the file is broken",
			map[string]string{"etc/cdi/a.yaml": oneGPU + "  color: red\n"},
			[]string{"acme.com/gpu=0"},
			"and CDI spec /etc/cdi/a.yaml:8: invalid: unknown field color", berth.ErrNotFound,
		},
		{
			"a device is wrong",
			map[string]string{"etc/cdi/a.yaml": oneGPU + "- name: '1'\n  containerEdits: {}\n"},
			[]string{"acme.com/gpu=0"},
			`and CDI spec /etc/cdi/a.yaml:8: invalid: device "1": it has no edits`, berth.ErrNotFound,
		},
		{
			"a directory is none",
			map[string]string{"etc/cdi": "file"},
			[]string{"acme.com/gpu=0"},
			"; and CDI specs: open ", berth.ErrNotFound,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache := NewCache(testHost(t, c.files, nil))
			spec := busySpec()
			before := asJSON(t, spec)
			_, err := cache.Inject(spec, c.ask...)
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.kind) {
				t.Errorf("%v\nwant %s (%v)", err, c.want, c.kind)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if asJSON(t, spec) != before {
				t.Error("the OCI spec was edited")
			}
		})
	}
}

func TestHigherDirectorySettlesConflicts(t *testing.T) {
	c := NewCache(testHost(t, map[string]string{
		"etc/cdi/a.yaml": oneGPU, "etc/cdi/b.yaml": oneGPU, "run/cdi/c.yaml": oneGPU, "var/run": "-> /run",
	}, nil))
	d, ok := c.Device("acme.com/gpu=0")
	if !ok || d.Spec.Path != "/var/run/cdi/c.yaml" {
		t.Errorf("%v %v, want that of /var/run/cdi", d, ok)
	}
	if n := len(c.Problems()); n != 2 {
		t.Errorf("%d problems, want both files of /etc/cdi", n)
	}
}

func TestUnreadableDirectoryHidesNoOther(t *testing.T) {
	c := NewCache(testHost(t, map[string]string{"a": "file", "b/a.yaml": oneGPU, "b/pipe.yaml": "-> /nowhere"}, nil), "/a", "/b")
	if diff := cmp.Diff([]string{"acme.com/gpu=0"}, c.Devices()); diff != "" {
		t.Error(diff)
	}
	if n := len(c.Problems()); n != 2 {
		t.Errorf("problems: %v", c.Problems())
	}
}

func TestSameNameTwiceIsOnce(t *testing.T) {
	c := NewCache(testHost(t, map[string]string{"etc/cdi/a.yaml": oneGPU}, nodes{"/dev/acme0": {Type: "c", Major: 240}}))
	spec := &oci.Spec{}
	if _, err := c.Inject(spec, "acme.com/gpu=0", "acme.com/gpu=0"); err != nil {
		t.Fatal(err)
	}
	if n := len(spec.Linux.Resources.Devices); n != 1 {
		t.Errorf("%d device rules, want 1", n)
	}
}

func TestCacheAtOnce(t *testing.T) {
	host := testHost(t, map[string]string{"etc/cdi/a.yaml": oneGPU}, nodes{"/dev/acme0": {Type: "c", Major: 240}})
	c := NewCache(host)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if _, err := c.Inject(&oci.Spec{}, "acme.com/gpu=0"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 50 {
		if _, err := Write(host, "/etc/cdi", "a", &specs.Spec{Kind: "acme.com/gpu", Devices: []specs.Device{{Name: "0", ContainerEdits: Edits{Env: []string{"A=b"}}}}}); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func TestWrite(t *testing.T) {
	host := testHost(t, map[string]string{"var/run": "-> /run", "run/lock": ""}, nil)
	doc := &specs.Spec{
		Version: "9.9.9", Kind: "acme.com/gpu",
		Devices: []specs.Device{{Name: "gpu0", ContainerEdits: Edits{DeviceNodes: []*specs.DeviceNode{{Path: "/dev/acme0"}}}}},
	}
	file, err := Write(host, "/var/run/cdi", "acme", doc)
	if err != nil || file != "/var/run/cdi/acme.yaml" {
		t.Fatal(file, err)
	}
	s, err := ReadSpec(host, file, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := *doc
	want.Version = "0.3.0"
	if diff := cmp.Diff(&want, s.Document()); diff != "" || !s.Own {
		t.Errorf("own %v; %s", s.Own, diff)
	}
	if st, err := os.Stat(filepath.Join(host.Root, "run/cdi/acme.yaml")); err != nil || st.Mode() != 0o644 {
		t.Error(st, err)
	}
	if left, _ := os.ReadDir(filepath.Join(host.Root, "run/cdi")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	doc.Devices = nil
	if _, err := Write(host, "/var/run/cdi", "acme", doc); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("no devices: %v", err)
	}
	if _, err := Write(host, "/var/run/cdi", "../acme", &want); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a path for a name: %v", err)
	}
}

func BenchmarkInject(b *testing.B) {
	dir := b.TempDir()
	doc := &specs.Spec{Kind: "acme.com/gpu"}
	for i := range 16 {
		doc.Devices = append(doc.Devices, specs.Device{Name: string(rune('a' + i)), ContainerEdits: *busyEdits()})
	}
	for range 60 {
		doc.ContainerEdits.Mounts = append(doc.ContainerEdits.Mounts, &specs.Mount{HostPath: "/usr/lib/libx.so", ContainerPath: "/usr/lib/libx.so", Options: []string{"ro", "rbind"}})
	}
	if _, err := Write(Host{}, dir, "acme", doc); err != nil {
		b.Fatal(err)
	}
	cache := func() *Cache {
		return NewCache(Host{Node: nodes{"/dev/gpu0": {Type: "c", Major: 195}}.find}, dir)
	}
	inject := func(c *Cache) {
		if _, err := c.Inject(busySpec(), "acme.com/gpu=a"); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			inject(cache())
		}
	})
	b.Run("again", func(b *testing.B) {
		c := cache()
		for b.Loop() {
			inject(c)
		}
	})
}
