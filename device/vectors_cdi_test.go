package device_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/hook"
	"github.com/berth-project/berth/device/cdi/inroot"
)

// cdiSuites are the suites of device/cdi: CDI specs and the hooks of cmd/berth-cdi-hook.
var cdiSuites = map[string]suite{
	"cdi.annotation.key": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Plugin string
			ID     string `json:"device_id"`
		}](t, input)
		key, err := cdi.AnnotationKey(in.Plugin, in.ID)
		return map[string]any{"key": key, "ok": err == nil}, nil
	},
	"cdi.annotation.parse": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Annotations map[string]string }](t, input)
		devices, err := cdi.ParseAnnotations(in.Annotations)
		return map[string]any{"devices_sorted": devices, "ok": err == nil}, nil
	},
	"cdi.cache.inject": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Devices []string
			Spec    *oci.Spec                     `json:"oci_spec"`
			Dirs    []string                      `json:"spec_dirs_low_to_high"`
			Files   map[string]map[string]*cdiDoc `json:"files"`
		}](t, input)
		top := t.TempDir()
		writeSpecs(t, top, in.Files)
		unresolved, err := cdi.NewCache(cdi.Host{}, beneath(top, in.Dirs)...).Inject(in.Spec, in.Devices...)
		if err != nil {
			return map[string]any{"unresolved": unresolved}, err
		}
		return map[string]any{"oci_spec": in.Spec}, nil
	},
	"cdi.cache.list": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Dirs  []string                      `json:"spec_dirs_low_to_high"`
			Files map[string]map[string]*cdiDoc `json:"files"`
		}](t, input)
		top := t.TempDir()
		writeSpecs(t, top, in.Files)
		c := cdi.NewCache(cdi.Host{}, beneath(top, in.Dirs)...)
		return map[string]any{"vendors": c.Vendors(), "classes": c.Classes()}, nil
	},
	"cdi.cache.refresh": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Dirs    []string `json:"spec_dirs_low_to_high"`
			Updates []map[string]map[string]*cdiDoc
		}](t, input)
		top := t.TempDir()
		c := cdi.NewCache(cdi.Host{}, beneath(top, in.Dirs)...)
		var after []any
		for _, update := range in.Updates {
			writeSpecs(t, top, update)
			files, priority := map[string]bool{}, map[string]int{}
			for _, p := range c.Problems() {
				rel, err := filepath.Rel(top, p.Path)
				if err != nil {
					t.Fatal(err)
				}
				files[rel] = true
			}
			for _, name := range c.Devices() {
				d, _ := c.Device(name)
				priority[name] = d.Spec.Priority
			}
			after = append(after, map[string]any{
				"devices": c.Devices(), "priority": priority, "files_with_errors_unordered": slices.Collect(maps.Keys(files)),
			})
		}
		return map[string]any{"after_each_update": after}, nil
	},
	"cdi.device.validate": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Device specs.Device }](t, input)
		return map[string]any{"valid": cdi.ValidateDevice(&in.Device) == nil}, nil
	},
	"cdi.edits.append": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Into   *cdi.Edits
			Append []*cdi.Edits
		}](t, input)
		return map[string]any{"result": cdi.Append(in.Into, in.Append...)}, nil
	},
	"cdi.edits.apply": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Edits *cdi.Edits `json:"container_edits"`
			Spec  *oci.Spec  `json:"oci_spec"`
		}](t, input)
		err := cdi.Apply(in.Spec, in.Edits, cdi.Host{})
		return map[string]any{"oci_spec": in.Spec}, err
	},
	"cdi.edits.validate": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Edits *cdi.Edits `json:"container_edits"`
		}](t, input)
		return map[string]any{"valid": cdi.ValidateEdits(in.Edits) == nil}, nil
	},
	"cdi.name": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Device string }](t, input)
		n := cdi.SplitName(in.Device)
		return map[string]any{
			"qualified": cdi.IsQualified(in.Device),
			"split":     map[string]string{"vendor": n.Vendor, "class": n.Class, "name": n.Device},
		}, nil
	},
	"cdi.spec.load": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Document *cdiDoc }](t, input)
		file := filepath.Join(t.TempDir(), "spec.yaml")
		in.Document.write(t, file)
		_, err := cdi.ReadSpec(cdi.Host{}, file, 0)
		return map[string]any{"ok": err == nil}, nil
	},
	"cdi.specdirs.scan": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Abort bool `json:"abort_on_first_error"`
			Files map[string]*cdiDoc
		}](t, input)
		dir := t.TempDir()
		writeSpecs(t, dir, map[string]map[string]*cdiDoc{".": in.Files})
		loaded, failed := []string{}, []string{}
		vendors, classes := map[string]string{}, map[string]string{}
		stop := errors.New("stop")
		err := cdi.Scan(cdi.Host{}, []string{filepath.Join(dir, "missing"), dir}, func(path string, _ int, s *cdi.Spec, err error) error {
			name := filepath.Base(path)
			if err == nil {
				loaded = append(loaded, name)
				vendors[name], classes[name] = s.Vendor, s.Class
				return nil
			}
			failed = append(failed, name)
			if in.Abort {
				return stop
			}
			return nil
		})
		if errors.Is(err, stop) {
			err = nil
		}
		return map[string]any{"loaded": loaded, "failed": failed, "vendors": vendors, "classes": classes}, err
	},
	"cdi.version.minimum": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Spec *specs.Spec }](t, input)
		v, err := cdi.MinimumVersion(in.Spec)
		return map[string]any{"version": v}, err
	},
	"cdi.version.validate": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Spec *specs.Spec }](t, input)
		return map[string]any{"ok": cdi.ValidateVersion(in.Spec) == nil}, nil
	},
	"hook.application_profile": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Mask uint64 }](t, input)
		return map[string]any{"file": string(hook.ApplicationProfile(in.Mask))}, nil
	},
	"hook.cuda_compat.dir": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Dir    string            `json:"compat_root"`
			CUDA   string            `json:"host_cuda_version"`
			Driver string            `json:"host_driver_version"`
			Files  map[string]string `json:"rootfs_files"`
		}](t, input)
		dir := t.TempDir()
		for _, name := range slices.Sorted(maps.Keys(in.Files)) {
			target, isLink := strings.CutPrefix(in.Files[name], "symlink=")
			putFile(t, filepath.Join(dir, name), in.Files[name], target, isLink)
		}
		root := openRoot(t, dir)
		found, _, err := hook.Compat{Dir: in.Dir, HostDriver: in.Driver, HostCUDA: in.CUDA}.Find(root)
		return map[string]any{"compat_dir": found}, err
	},
	"hook.cuda_compat.use": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Driver     string `json:"compat_driver_version"`
			HostCUDA   string `json:"host_cuda_version"`
			HostDriver string `json:"host_driver_version"`
			CUDA       string `json:"note_cuda_version"`
			Branches   []int  `json:"note_driver_branches"`
		}](t, input)
		n := hook.CompatNote{CUDA: in.CUDA, Branches: in.Branches}
		return map[string]any{"use_compat": n.UseCompat(in.Driver, in.HostDriver, in.HostCUDA)}, nil
	},
	"hook.disable_device_node_modification": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Params string }](t, input)
		contents, modified := hook.WithoutNodeModification([]byte(in.Params))
		return map[string]any{"contents": string(contents), "modified": modified}, nil
	},
	"hook.gpu_minors": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Nodes []hook.DeviceNode }](t, input)
		return map[string]any{"minors": hook.GPUMinors(in.Nodes)}, nil
	},
}

// cdiChecks are the suites whose cases say what to look at afterwards.
var cdiChecks = map[string]check{
	"hook.create_symlinks": func(t *testing.T, input, expected json.RawMessage) (any, error) {
		in := decode[struct {
			Link   struct{ Path, Target string }
			Rootfs []struct {
				Path   string
				Target string `json:"link_target"`
			}
		}](t, input)
		dir := t.TempDir()
		for _, f := range in.Rootfs {
			if f.Target != "" {
				putFile(t, filepath.Join(dir, f.Path), "", f.Target, true)
			} else if err := os.MkdirAll(filepath.Join(dir, f.Path), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		err := hook.CreateSymlink(openRoot(t, dir), in.Link.Target, in.Link.Path)
		var after []map[string]any
		for _, look := range decode[struct{ After []map[string]any }](t, expected).After {
			name, _ := look["path"].(string)
			now := map[string]any{"path": name}
			st, missing := os.Lstat(filepath.Join(dir, name))
			if to, err := os.Readlink(filepath.Join(dir, name)); err == nil {
				now["readlink"] = to
			}
			for key, is := range map[string]bool{"exists": missing == nil, "absent": missing != nil, "is_dir": missing == nil && st.IsDir()} {
				if _, asked := look[key]; asked {
					now[key] = is
				}
			}
			after = append(after, now)
		}
		return map[string]any{"after": after}, err
	},
}

func putFile(t *testing.T, file, text, target string, isLink bool) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil && isLink {
		err = os.Symlink(target, file)
	} else if err == nil {
		err = os.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func openRoot(t *testing.T, dir string) *inroot.Root {
	t.Helper()
	root, err := inroot.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// cdiDoc is the content of a spec file in a case: a document, text as it is ({"text": …}), or "REMOVE".
type cdiDoc struct{ raw json.RawMessage }

func (d *cdiDoc) UnmarshalJSON(data []byte) error {
	d.raw = slices.Clone(data)
	return nil
}

func (d *cdiDoc) write(t *testing.T, file string) {
	t.Helper()
	if d == nil {
		d = &cdiDoc{[]byte("null")}
	}
	var remove string
	if json.Unmarshal(d.raw, &remove) == nil && remove == "REMOVE" {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		return
	}
	data := []byte(d.raw)
	var verbatim map[string]string
	if json.Unmarshal(d.raw, &verbatim) == nil {
		if text, ok := verbatim["text"]; ok && len(verbatim) == 1 {
			data = []byte(text)
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	// As programs that know what they do write such files.
	if err := os.WriteFile(file+".tmp", data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		t.Fatal(err)
	}
}

func writeSpecs(t *testing.T, top string, dirs map[string]map[string]*cdiDoc) {
	t.Helper()
	for dir, files := range dirs {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, doc := range files {
			doc.write(t, filepath.Join(top, dir, name))
		}
	}
}

func beneath(top string, dirs []string) []string {
	abs := make([]string, len(dirs))
	for i, dir := range dirs {
		abs[i] = filepath.Join(top, dir)
	}
	return abs
}
