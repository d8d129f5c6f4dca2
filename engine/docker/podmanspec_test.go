package docker

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func podmanOptions() client.ContainerCreateOptions {
	return client.ContainerCreateOptions{
		Config:     &container.Config{},
		HostConfig: &container.HostConfig{LogConfig: container.LogConfig{Type: "k8s-file", Config: map[string]string{"max-size": "134217728"}}},
	}
}

// TestPodmanRefuses: what is asked of Docker and has no words in Podman's is refused, by its name.
func TestPodmanRefuses(t *testing.T) {
	for what, set := range map[string]func(*client.ContainerCreateOptions){
		"Privileged":  func(o *client.ContainerCreateOptions) { o.HostConfig.Privileged = true },
		"CpusetCpus":  func(o *client.ContainerCreateOptions) { o.HostConfig.CpusetCpus = "0" },
		"Binds":       func(o *client.ContainerCreateOptions) { o.HostConfig.Binds = []string{"/a:/b"} },
		"Domainname":  func(o *client.ContainerCreateOptions) { o.Config.Domainname = "d" },
		"systempaths": func(o *client.ContainerCreateOptions) { o.HostConfig.SecurityOpt = []string{"systempaths=unconfined"} },
		`driver "nvidia"`: func(o *client.ContainerCreateOptions) {
			o.HostConfig.DeviceRequests = []container.DeviceRequest{{Driver: "nvidia", Count: 1}}
		},
		"colon": func(o *client.ContainerCreateOptions) {
			o.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/a:b"}}
		},
		"npipe": func(o *client.ContainerCreateOptions) {
			o.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeNamedPipe}}
		},
	} {
		o := podmanOptions()
		set(&o)
		if _, err := podmanSpecOf(o, t.TempDir()); !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v; want %v that names it", what, err, berth.ErrUnsupported)
		}
	}
	o := podmanOptions()
	o.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: filepath.Join(t.TempDir(), "none"), Target: "/x"}}
	if _, err := podmanSpecOf(o, t.TempDir()); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("a source that is not there: %v", err)
	}
	for _, rule := range []string{"", "c 10:229", "c a:b rwm"} {
		if _, err := deviceRule(rule); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("device rule %q: %v", rule, err)
		}
	}
}

func TestPodmanDevices(t *testing.T) {
	o := podmanOptions()
	o.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/fuse", PathInContainer: "/dev/x", CgroupPermissions: "rw"}}
	o.HostConfig.DeviceRequests = []container.DeviceRequest{{Driver: "cdi", DeviceIDs: []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1"}}}
	o.HostConfig.DeviceCgroupRules = []string{"c 10:229 r", "b 8:* rwm"}
	s, err := podmanSpecOf(o, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	want := []specs.LinuxDevice{{Path: "/dev/fuse:/dev/x:rw"}, {Path: "nvidia.com/gpu=0"}, {Path: "nvidia.com/gpu=1"}}
	if !reflect.DeepEqual(s.Devices, want) {
		t.Errorf("devices %+v; want %+v", s.Devices, want)
	}
	rules := []specs.LinuxDeviceCgroup{
		{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "r"},
		{Allow: true, Type: "b", Major: new(int64(8)), Access: "rwm"},
	}
	if !reflect.DeepEqual(s.DeviceRules, rules) {
		t.Errorf("rules %+v; want %+v", s.DeviceRules, rules)
	}
}

// TestSweepCgroups: what conmon has held on to is removed once its sandbox is gone, and nothing of another.
func TestSweepCgroups(t *testing.T) {
	root := cgroupRoot
	if exists(filepath.Join(cgroupRoot, "memory")) {
		root = filepath.Join(cgroupRoot, "memory")
	}
	dir := t.TempDir()
	e, err := New(Config{Host: "unix:///none", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	if err := os.Mkdir(e.sandboxDir("open"), 0o700); err != nil {
		t.Fatal(err)
	}
	gone, open := filepath.Join(root, defaultParent, e.owner+"-gone-1"), filepath.Join(root, defaultParent, e.owner+"-open-1")
	for _, d := range []string{filepath.Join(gone, "conmon"), open} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = os.Remove(open) }()
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if exists(gone) || !exists(open) {
		t.Errorf("of a sandbox that is gone: there is %v; of one that is open: %v", exists(gone), exists(open))
	}
}
