package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/system"
)

// lentNVIDIA is a grant as NVIDIA's are, of a fake GPU.
func lentNVIDIA(n berth.Node, i int, edits string, capabilities ...string) berth.Grant {
	n.Container = fmt.Sprintf("/dev/nvidia%d", i)
	return berth.Grant{
		CDI: fmt.Sprintf("nvidia.com/gpu=%d", i), Vendor: "nvidia", UUID: fmt.Sprintf("GPU-%d", i), Nodes: []berth.Node{n}, GIDs: []uint32{44},
		Capabilities: capabilities, Edits: json.RawMessage(edits),
	}
}

// TestLend: by which way a daemon brings what was lent.
func TestLend(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make device nodes")
	}
	nodes, err := enginetest.FakeGPUs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	lib := filepath.Join(t.TempDir(), "lib.so")
	if err := os.WriteFile(lib, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	plain := fmt.Sprintf(`{"env":["BERTH_GPUS=GPU-0"],"mounts":[{"hostPath":%q,"containerPath":"/usr/lib/lib.so","options":["ro","nosuid","nodev","rbind","rprivate"]}]}`, lib)
	hooked := `{"hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true","update-ldcache"]}]}`
	spec := func(dir string, n berth.Node) string {
		text := fmt.Sprintf(`{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia0","hostPath":%q}]}}]}`, n.Host)
		if err := os.WriteFile(filepath.Join(dir, "nvidia.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	same, other := spec(t.TempDir(), nodes[0]), spec(t.TempDir(), nodes[1])
	amd := lentNVIDIA(nodes[1], 1, `{}`)
	amd.Vendor, amd.CDI, amd.UUID = "amd", "", "0xabc"
	device := func(i int) container.DeviceMapping {
		return container.DeviceMapping{PathOnHost: nodes[i].Host, PathInContainer: fmt.Sprintf("/dev/nvidia%d", i), CgroupPermissions: "rwm"}
	}
	bind := mount.Mount{Type: mount.TypeBind, Source: lib, Target: "/usr/lib/lib.so", ReadOnly: true, BindOptions: &mount.BindOptions{Propagation: "rprivate"}}
	byUUID := container.DeviceRequest{Driver: "nvidia", DeviceIDs: []string{"GPU-0"}, Capabilities: [][]string{{"gpu"}}}
	words := byUUID
	words.Capabilities = [][]string{{"gpu", "compute", "video"}}
	byCDI := container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"nvidia.com/gpu=0"}}
	void, uuid := []string{"A=1", "BERTH_GPUS=GPU-0", "NVIDIA_VISIBLE_DEVICES=void"}, []string{"A=1", "BERTH_GPUS=GPU-0", "NVIDIA_VISIBLE_DEVICES=GPU-0"}
	for _, tt := range []struct {
		name   string
		host   hostInfo
		grants []berth.Grant
		want   container.HostConfig
		env    []string
		says   []string // in the error
	}{
		{"CDI", hostInfo{cdiDirs: []string{same}, runtimes: []string{"nvidia"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, plain)}, container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{byCDI}}}, void, nil},
		{"CDI, where the name is another GPU's", hostInfo{cdiDirs: []string{other}, runtimes: []string{"nvidia"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, plain)}, container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{byUUID}}}, uuid, nil},
		{"CDI, where there is no spec", hostInfo{cdiDirs: []string{t.TempDir()}}, []berth.Grant{lentNVIDIA(nodes[0], 0, plain)}, container.HostConfig{Mounts: []mount.Mount{bind}, Resources: container.Resources{Devices: []container.DeviceMapping{device(0)}}}, void, nil},
		{"NVIDIA's runtime", hostInfo{runtimes: []string{"nvidia", "runc"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, hooked), lentNVIDIA(nodes[0], 0, plain)}[:1], container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{byUUID}}}, []string{"A=1", "NVIDIA_VISIBLE_DEVICES=GPU-0"}, nil},
		{"NVIDIA's runtime, capabilities", hostInfo{runtimes: []string{"nvidia"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, hooked, "compute", "gpu", "nvidia")}, container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{{Driver: "nvidia", DeviceIDs: []string{"GPU-0"}, Capabilities: [][]string{{"gpu", "compute"}}}}}}, []string{"A=1", "NVIDIA_VISIBLE_DEVICES=GPU-0"}, nil},
		{"NVIDIA's runtime, several capabilities", hostInfo{runtimes: []string{"nvidia"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, hooked, "compute", "video")}, container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{words}}}, []string{"A=1", "NVIDIA_VISIBLE_DEVICES=GPU-0"}, nil},
		{"NVIDIA's runtime, all capabilities", hostInfo{runtimes: []string{"nvidia"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, hooked, "all", "compute")}, container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{byUUID}}}, []string{"A=1", "NVIDIA_DRIVER_CAPABILITIES=all", "NVIDIA_VISIBLE_DEVICES=GPU-0"}, nil},
		{"NVIDIA's runtime, a capability that Docker does not know", hostInfo{runtimes: []string{"nvidia"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, hooked, "compute", "ngx")}, container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{byUUID}}}, []string{"A=1", "NVIDIA_DRIVER_CAPABILITIES=compute,ngx", "NVIDIA_VISIBLE_DEVICES=GPU-0"}, nil},
		{"neither", hostInfo{runtimes: []string{"runc"}}, []berth.Grant{lentNVIDIA(nodes[0], 0, plain)}, container.HostConfig{Mounts: []mount.Mount{bind}, Resources: container.Resources{Devices: []container.DeviceMapping{device(0)}}}, void, nil},
		{"berth's runtime under the name of NVIDIA's", hostInfo{runtimes: []string{"nvidia"}, lends: true}, []berth.Grant{lentNVIDIA(nodes[0], 0, plain)}, container.HostConfig{Mounts: []mount.Mount{bind}, Resources: container.Resources{Devices: []container.DeviceMapping{device(0)}}}, void, nil},
		{
			"two vendors",
			hostInfo{runtimes: []string{"nvidia"}},
			[]berth.Grant{lentNVIDIA(nodes[0], 0, plain), amd},
			container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{byUUID}, Devices: []container.DeviceMapping{device(1)}}},
			uuid, nil,
		},
		{"hooks on Podman", hostInfo{podman: true}, []berth.Grant{lentNVIDIA(nodes[0], 0, hooked)}, container.HostConfig{}, nil, []string{"update-ldcache", "berth cdi generate", "--engine oci"}},
		{"hooks", hostInfo{}, []berth.Grant{lentNVIDIA(nodes[0], 0, hooked)}, container.HostConfig{}, nil, []string{"GPU-0", "/bin/true update-ldcache", "nvidia-ctk runtime configure", "--engine oci"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &Sandbox{spec: berth.SandboxSpec{Grants: tt.grants}}
			cfg, hc := &container.Config{Env: []string{"A=1"}}, &container.HostConfig{}
			_, err := s.lend(&tt.host, cfg, hc)
			if len(tt.says) > 0 {
				if !errors.Is(err, berth.ErrUnsupported) {
					t.Fatalf("error %v; want one that is unsupported", err)
				}
				if w := "--add-runtime"; strings.Contains(err.Error(), w) {
					t.Errorf("%q says %q, which would not help: the daemon's runtimes are not asked for", err, w)
				}
				for _, w := range tt.says {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("%q does not say %q", err, w)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.want.GroupAdd = []string{"44"}
			if !reflect.DeepEqual(*hc, tt.want) {
				t.Errorf("host configuration %+v\nwant %+v", *hc, tt.want)
			}
			if !reflect.DeepEqual(cfg.Env, tt.env) {
				t.Errorf("environment %q, want %q", cfg.Env, tt.env)
			}
		})
	}
}

func TestLendsItself(t *testing.T) {
	for path, want := range map[string]bool{"/usr/local/bin/berth-oci-runtime": true, "/usr/bin/nvidia-container-runtime": false, "": false} {
		info := system.Info{Runtimes: map[string]system.RuntimeWithStatus{"nvidia": {Runtime: system.Runtime{Path: path}}}}
		if got := lendsItself(info); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}
