package monitor

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/network"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/scratch"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestLeavesNetwork(t *testing.T) {
	m := testMonitor(t)
	area, err := scratch.Open(t.Context(), filepath.Join(t.TempDir(), "area"), scratch.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = area.Close() })
	sb := &sandbox{m: m, id: "s", dir: "/run/records/s", area: area, volumes: []string{"/scratch/s/v"}}
	for _, c := range []struct {
		name string
		edit func(l *launch)
		want bool
	}{
		{"plain", func(*launch) {}, true},
		{"fewer capabilities", func(l *launch) { l.spec.Process.Capabilities.Bounding = nil }, true},
		{"volume", func(l *launch) { l.mount("bind", "/scratch/s/v/below", "/out") }, true},
		{"image's volume", func(l *launch) { l.mount("bind", filepath.Join(area.Dir(), "image-volume-s-0"), "/data") }, true},
		{"file of berth's", func(l *launch) { l.mount("bind", "/run/records/s/files/hosts", "/etc/hosts") }, true},
		{"tmpfs", func(l *launch) { l.mount("tmpfs", "tmpfs", "/t") }, true},
		{"OCI runtime", func(l *launch) { l.c.runtime = "runc 1.2" }, false},
		{"hooks", func(l *launch) { l.spec.Hooks = &specs.Hooks{} }, false},
		{"sysctl", func(l *launch) { l.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_default_ttl": "3"} }, false},
		{"device", func(l *launch) { l.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null"}} }, false},
		{"lent", func(l *launch) { l.req.Lent = []berth.Node{{}} }, false},
		{"sysctls that can be written", func(l *launch) { l.spec.Linux.ReadonlyPaths = []string{"/proc/bus"} }, false},
		{"CAP_NET_ADMIN", func(l *launch) {
			l.spec.Process.Capabilities.Bounding = append(slices.Clone(plainCaps), "CAP_NET_ADMIN")
		}, false},
		{"CAP_SYS_ADMIN", func(l *launch) { l.spec.Process.Capabilities.Bounding = []string{"CAP_SYS_ADMIN"} }, false},
		{"permitted beyond the bounding set", func(l *launch) { l.spec.Process.Capabilities.Permitted = []string{"CAP_NET_ADMIN"} }, false},
		{"capability that is not known", func(l *launch) { l.spec.Process.Capabilities.Bounding = []string{"CAP_NEW"} }, false},
		{"user namespace", func(l *launch) { l.namespace(specs.UserNamespace, "") }, false},
		{"other network", func(l *launch) { l.namespace(specs.NetworkNamespace, "/proc/1/ns/net") }, false},
		{"processes of the host", func(l *launch) { l.spec.Linux.Namespaces = nil }, false},
		{"mount of the host's", func(l *launch) { l.mount("bind", "/scratch/s/volume", "/m") }, false},
		{"mount of the host's by its options", func(l *launch) { l.mount("none", "/srv", "/m", "rbind") }, false},
		{"way out of a volume", func(l *launch) { l.mount("bind", "/scratch/s/v/../../t", "/m") }, false},
		{"another proc", func(l *launch) { l.mount("proc", "proc", "/proc2") }, false},
		{"mount of another type", func(l *launch) { l.mount("nfs", "server:/", "/m") }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &launch{c: &container{sb: sb, runtime: runtimeDirect}, req: &wire.Start{}, spec: &specs.Spec{
				Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: plainCaps}},
				Linux:   &specs.Linux{ReadonlyPaths: []string{"/proc/bus", "/proc/sys"}, Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}}},
				Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/sys", Type: "sysfs"}},
			}}
			c.edit(l)
			if got := l.leavesNetwork(); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func (l *launch) mount(kind, source, destination string, options ...string) {
	l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Type: kind, Source: source, Destination: destination, Options: options})
}

func (l *launch) namespace(kind specs.LinuxNamespaceType, path string) {
	l.spec.Linux.Namespaces = append(l.spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
}

// A network is given back when the last of its containers is gone, and never where one has made it unfit meanwhile.
func TestCloseNetwork(t *testing.T) {
	for _, c := range []struct {
		name             string
		later            int
		before, meantime bool // worn
		want             bool // given back
	}{
		{"nothing runs", 0, false, false, true},
		{"worn", 0, true, false, false},
		{"one runs", 2, false, false, true},
		{"one runs, worn", 2, true, false, false},
		{"one runs, worn meanwhile", 2, false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := testMonitor(t)
			m.nets = network.New(network.Options{Pool: 1, Dir: t.TempDir()})
			t.Cleanup(func() { _ = m.nets.Close() })
			n, err := m.nets.Setup(t.Context(), network.Spec{ID: "s"})
			if err != nil {
				t.Fatal(err)
			}
			sb := &sandbox{m: m, id: "s", net: n}
			sb.worn.Store(c.before)
			var later []*container
			for range c.later {
				later = append(later, &container{clean: make(chan struct{})})
			}
			sb.closeNetwork(later)
			if c.later > 0 && !c.before {
				close(later[0].clean)
				time.Sleep(400 * time.Millisecond) // longer than one that was given back rests
				if other, err := m.nets.Setup(t.Context(), network.Spec{ID: "t"}); err != nil || other.NS == n.NS || n.NS.Fd() == ^uintptr(0) {
					t.Fatalf("it was taken away while a container ran: %v", err)
				} else if err := other.Close(); err != nil {
					t.Fatal(err)
				}
				sb.worn.Store(c.meantime)
				close(later[1].clean)
			}
			m.wg.Wait()
			if got := n.NS.Fd() != ^uintptr(0); got != c.want {
				t.Errorf("given back: %v, want %v", got, c.want)
			}
		})
	}
}
