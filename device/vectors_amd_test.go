package device_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
)

// amdSuites are the suites of device/amd.
var amdSuites = map[string]suite{
	"amd.visible_devices": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Value string
			Count int              `json:"gpu_count"`
			IDs   map[string][]int `json:"unique_ids"`
		}](t, input)
		v := amd.ParseVisible(in.Value, in.Count, in.IDs)
		return map[string]any{"indices": v.Indices, "ignored_ids": v.IgnoredIDs, "ignored_ranges": v.IgnoredRanges}, nil
	},
	"amd.env": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Env   []string
			Count int              `json:"gpu_count"`
			IDs   map[string][]int `json:"unique_ids"`
		}](t, input)
		var v amd.Visible
		if value, ok := amd.VisibleOf(in.Env); ok {
			v = amd.ParseVisible(value, in.Count, in.IDs)
		}
		return map[string]any{"indices": v.Indices}, nil
	},
	"amd.enumerate": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Sysfs []struct {
				Path, Text string
				Dir        bool
			}
		}](t, input)
		root := t.TempDir()
		for _, f := range in.Sysfs {
			file := filepath.Join(root, f.Path)
			if f.Dir {
				mkdir(t, file)
				continue
			}
			mkdir(t, filepath.Dir(file))
			if err := os.WriteFile(file, []byte(f.Text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		host, err := device.OpenHost(root)
		if err != nil {
			t.Fatal(err)
		}
		gpus, err := amd.Find(host)
		if err != nil {
			return nil, err
		}
		var list []any
		for _, g := range gpus {
			list = append(list, map[string]any{"drm_devices": g.DRM})
		}
		return map[string]any{"gpus": list, "unique_id_to_indices": amd.UniqueIDs(gpus)}, nil
	},
	"amd.cdi_generate":    amdCDIGenerate,
	"amd.tracker.reserve": amdTrackerReserve,
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func amdCDIGenerate(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		GPUs []struct{ DRM []string }
	}](t, input)
	// Each node has a group and a mode of its own, so that the spec's are seen to be the node's.
	nodes, gpus := "c 234:0 0666 0:100 /dev/kfd\n", []amd.GPU{}
	for _, g := range in.GPUs {
		for _, name := range g.DRM {
			n := strings.Count(nodes, "\n")
			nodes += fmt.Sprintf("c 226:%d 06%d0 7:%d %s\n", n, n%8, 100+n, name)
		}
		gpus = append(gpus, amd.GPU{DRM: g.DRM})
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, device.NodeList), []byte(nodes), 0o600); err != nil {
		t.Fatal(err)
	}
	host, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := amd.Generator{Host: host}.Spec(gpus)
	if err != nil {
		return nil, err
	}
	devices, common := map[string][]string{}, map[string]any{}
	var gids []uint32
	for _, d := range spec.Devices {
		gids = append(gids, d.ContainerEdits.AdditionalGIDs...)
		for _, n := range d.ContainerEdits.DeviceNodes {
			devices[d.Name] = append(devices[d.Name], n.Path)
			is, err := host.Node(n.Path)
			if err != nil {
				t.Fatal(err)
			}
			own := map[string]any{"permissions": n.Permissions, "uid": *n.UID, "type": n.Type, "gid": *n.GID, "fileMode": *n.FileMode}
			if *n.GID == is.GID && *n.FileMode == is.Mode {
				own["gid"], own["fileMode"] = "from host node", "from host node"
			}
			if n.Major != int64(is.Major) || n.Minor != int64(is.Minor) {
				t.Errorf("%s: %d:%d", n.Path, n.Major, n.Minor)
			}
			for k, v := range own {
				if old, ok := common[k]; ok && old != v {
					t.Errorf("%s: %s is %v, and %v elsewhere", n.Path, k, v, old)
				}
				common[k] = v
			}
		}
	}
	return map[string]any{"version": spec.Version, "kind": spec.Kind, "devices": devices, "node_fields": common, "additional_gids": gids}, nil
}

func amdTrackerReserve(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		State map[string]struct {
			Mode string
			By   []string
		}
		Request, Container string
	}](t, input)
	tracker := amd.Tracker{}
	for key, g := range in.State {
		i, err := strconv.Atoi(key)
		if err != nil || g.Mode != "shared" && g.Mode != "exclusive" {
			t.Fatalf("state %q: %+v", key, g)
		}
		tracker[i] = amd.Tracked{Exclusive: g.Mode == "exclusive", Containers: g.By}
	}
	before := fmt.Sprint(tracker)
	granted, err := tracker.Reserve(in.Container, in.Request, nil)
	if err != nil {
		if after := fmt.Sprint(tracker); after != before {
			t.Errorf("a refused request left %s of %s", after, before)
		}
		return nil, err
	}
	return map[string]any{"granted": granted}, nil
}
