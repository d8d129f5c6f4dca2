package direct

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/rootfs"
)

// probeBinary is a static build of testdata/probe.
var probeBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-direct-probe-")
	if err != nil {
		return "", err
	}
	probeDir = dir
	out := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build probe: %w: %s", err, text)
	}
	return out, nil
})

// lookAround prints all that a container can see of how it is confined. Each line is compared by itself.
const lookAround = `
section() { echo "== $1"; }
section id; id -u; id -g; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign)|Umask)' /proc/self/status
section limits; cat /proc/self/limits
section cgroup; cat /proc/self/cgroup
section maps; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups
section env; env
section cwd; pwd; readlink /proc/self/cwd
section names; hostname; cat /proc/sys/kernel/domainname
section session; cut -d' ' -f1,5,6 /proc/$$/stat
section oom; cat /proc/self/oom_score_adj
section umask; umask; touch /tmp/new && stat -c '%a %u %g' /tmp/new
section root; stat -c '%a %u %g' / ; touch /rootfile 2>&1
section dev; cd /dev; for f in $(find . | grep -v '^./\(mqueue\|shm\|pts\)/' | sort); do [ -L $f ] && echo "$f $(readlink $f)" || stat -c '%n %F %a %u %g %t:%T' $f; done; cd /
section mounts; cat /proc/self/mountinfo
section masked; for f in /proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
  [ -e $f ] && { [ -d $f ] && { echo "$f dir $(ls -A $f | wc -l)"; touch $f/x 2>&1; } || echo "$f $(stat -c '%F %t:%T %a' $f) $(head -c 10 $f | wc -c)"; } || echo "$f gone"; done
section readonly; for f in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do [ -e $f ] && stat -c '%n %F' $f; done
echo x 2>&1 >/proc/sys/kernel/hostname; echo x 2>&1 >/proc/sysrq-trigger; echo x 2>&1 >/sys/kernel/uevent_helper
section sysctl; cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ping_group_range /proc/sys/fs/mqueue/msg_max
section net; ip -o link | cut -d: -f2; cat /proc/net/dev | wc -l; ifconfig lo | grep -c UP
section devices; for d in null zero full random urandom tty; do head -c 1 /dev/$d 2>&1 | wc -c; done; echo x > /dev/full; echo x > /dev/null
section calls; /probe/probe
section keyring; if [ -s /proc/keys ]; then echo some; fi
section streams; ls -l /proc/self/fd | wc -l
section cgroups; ls -l /sys/fs/cgroup | cut -c1,57-; ls /sys/fs/cgroup/*/tasks
section places; stat -c '%n %a %u %g %F' /in /in/sub /inout /etc /made /made/for/it /slave /opt/block /home/made/here /tmp 2>/dev/null
section init; cat /proc/1/cmdline | tr '\0' ' '; echo; ls /proc | grep -E '^[0-9]+$' | head -1
`

// normal takes out what may differ: numbers of devices and mounts, addresses, names of this test's own.
func normal(section, line string) string {
	switch section {
	case "mounts":
		return normalMount(line)
	case "masked":
		line = regexp.MustCompile(`directory 0:0 \d+`).ReplaceAllString(line, "directory")
	}
	return line
}

// normalMount keeps of a line of mountinfo the place, what is mounted, and how.
func normalMount(line string) string {
	f := strings.Fields(line)
	sep := slices.Index(f, "-")
	if sep < 6 {
		return line
	}
	root, at, opts, tags, fsType, source, super := f[3], f[4], f[5], f[6:sep], f[sep+1], f[sep+2], f[sep+3]
	for i, tag := range tags {
		tags[i], _, _ = strings.Cut(tag, ":")
	}
	switch {
	case fsType == "overlay":
		super, source = "", "" // names of layers
	case at == "/sys/fs/cgroup":
		opts = "" // runc 1.1 leaves this tmpfs writable, and so do not we
	case fsType == "tmpfs":
		super = strings.TrimSuffix(super, ",mode=755") // a mode is compared where files are
	}
	switch {
	// What hides a path: berth has one null device and one empty directory for all containers; runc makes a
	// tmpfs for each directory and takes the container's null device.
	case root == "/null":
		opts, fsType, source, super = "", "", "", ""
	case root == "/"+emptyDir || fsType == "tmpfs" && opts == "ro,relatime" && super == "ro":
		root, opts, source, super = "/", "ro", "hidden", ""
	}
	return strings.Join([]string{root, at, opts, strings.Join(tags, ","), fsType, source, super}, " ")
}

// sections are the lines of what lookAround printed, by section.
func sections(text string) map[string][]string {
	m := map[string][]string{}
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if n, ok := strings.CutPrefix(line, "== "); ok {
			name = n
			m[name] = []string{}
			continue
		}
		m[name] = append(m[name], normal(name, line))
	}
	slices.Sort(m["mounts"])
	return m
}

// runcRun runs the bundle with runc.
func runcRun(t *testing.T, b *bundle.Bundle) (string, error) {
	t.Helper()
	root, err := rootfs.Overlay(b.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	place := filepath.Join(b.Dir, "rootfs")
	if err := os.Mkdir(place, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := rootfs.Attach(root, place); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(place, unix.MNT_DETACH) }()
	b.Spec.Root.Path = place
	b.Spec.Linux.CgroupsPath = "/berth-direct-test/" + filepath.Base(b.Dir)
	data, err := json.Marshal(b.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.Dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("runc", "--root", filepath.Join(b.Dir, "state"), "run", "--bundle", b.Dir, "t"+strings.ReplaceAll(filepath.Base(filepath.Dir(b.Dir)), "/", "-"))
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, errs.String())
	}
	return out.String(), nil
}

// TestAgainstRunc starts containers of one spec by runc and by this package, and compares what each sees from
// within. known are the lines that are allowed to differ, and why.
func TestAgainstRunc(t *testing.T) {
	s := testStarter(t)
	if _, err := exec.LookPath("runc"); err != nil {
		t.Fatal(err)
	}
	probe, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	if err := os.Mkdir(src+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	umask := uint32(0o27)
	score := 500
	rootUID, rootMode := uint32(3), os.FileMode(0o640)
	tests := []struct {
		name  string
		edit  func(*specs.Spec)
		known map[string]string // section: why it may differ
	}{
		{"berth's own", func(*specs.Spec) {}, nil},
		{"a user with groups, umask and limits", func(sp *specs.Spec) {
			sp.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 2000}, Umask: &umask}
			sp.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Soft: 50, Hard: 60}}
			sp.Process.OOMScoreAdj = &score
			sp.Process.Cwd = "/home/made/here"
		}, nil},
		{"all kinds of capabilities, privileges may grow", func(sp *specs.Spec) {
			sp.Process.NoNewPrivileges = false
			sp.Process.User.UID = 1000
			some := []string{"CAP_NET_RAW", "CAP_CHOWN", "CAP_NET_BIND_SERVICE"}
			sp.Process.Capabilities = &specs.LinuxCapabilities{Bounding: dockerCaps, Permitted: some, Effective: some[:2], Inheritable: some, Ambient: some[1:]}
		}, nil},
		{"no capabilities", func(sp *specs.Spec) { sp.Process.Capabilities = nil }, nil},
		{"no seccomp, all capabilities", func(sp *specs.Spec) {
			sp.Linux.Seccomp = nil
			all := slices.DeleteFunc(slices.Clone(capNames[:]), func(n string) bool {
				set, _ := parseCaps([]string{n})
				return s.caps&set == 0
			})
			sp.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Permitted: all, Effective: all}
		}, nil},
		{"read-only root", func(sp *specs.Spec) { sp.Root.Readonly = true }, nil},
		{"mounts of all kinds", func(sp *specs.Spec) {
			sp.Mounts = append(sp.Mounts,
				specs.Mount{Destination: "/in", Source: src, Type: "bind", Options: []string{"rbind", "ro", "nosuid", "nodev", "rprivate"}},
				specs.Mount{Destination: "/inout", Source: src, Type: "bind", Options: []string{"bind", "rw", "noexec", "private"}},
				specs.Mount{Destination: "/in/sub", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "noatime", "mode=1770", "uid=7", "gid=8"}},
				specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "nodev"}},
				specs.Mount{Destination: "/made/for/it", Type: "tmpfs", Source: "name"},
				specs.Mount{Destination: "/slave", Source: src, Type: "bind", Options: []string{"rbind", "rslave"}},
			)
		}, map[string]string{"places": "runc 1.1 gives a tmpfs the mode of what was there, whatever its option says"}},
		{"kernel parameters", func(sp *specs.Spec) {
			sp.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "1234567", "net.ipv4.ping_group_range": "0 5", "fs.mqueue.msg_max": "11"}
			sp.Domainname = "example.org"
		}, map[string]string{"names": "runc 1.1 passes domainname over"}},
		{"devices", func(sp *specs.Spec) {
			sp.Linux.Devices = []specs.LinuxDevice{
				{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &rootMode, UID: &rootUID, GID: &rootUID},
				{Path: "/dev/dri/card0", Type: "c", Major: 226, Minor: 0},
				{Path: "/dev/fifo", Type: "p"},
				{Path: "/opt/block", Type: "b", Major: 7, Minor: 99},
			}
		}, nil},
		{"the host's network and cgroup namespace", func(sp *specs.Spec) {
			sp.Linux.Namespaces = slices.DeleteFunc(sp.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
				return ns.Type == specs.NetworkNamespace || ns.Type == specs.CgroupNamespace
			})
		}, map[string]string{"cgroup": "runc makes one", "net": "the host's changes"}},
		{"cgroups mounted", func(sp *specs.Spec) {
			sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
		}, nil},
		{"a user namespace", func(sp *specs.Spec) {
			sp.Linux.Namespaces = append(sp.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 70000}}
			sp.Linux.UIDMappings, sp.Linux.GIDMappings = ids, ids
		}, nil},
		{"hooks", func(sp *specs.Spec) {
			one := []specs.Hook{{Path: "/bin/true", Env: []string{"A=1"}}}
			sp.Hooks = &specs.Hooks{CreateRuntime: one, CreateContainer: one}
		}, nil},
		{"hooks and all capabilities", func(sp *specs.Spec) {
			sp.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true", Env: []string{"A=1"}}}}
			all := slices.DeleteFunc(slices.Clone(capNames[:]), func(n string) bool {
				set, _ := parseCaps([]string{n})
				return s.caps&set == 0
			})
			sp.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Permitted: all, Effective: all}
		}, nil},
		{"no masked and read-only paths", func(sp *specs.Spec) { sp.Linux.MaskedPaths, sp.Linux.ReadonlyPaths = nil, []string{"/etc", "/no/such"} }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bundleOf := func(name string) *bundle.Bundle {
				sp := testSpec(t, "/bin/sh", "-c", lookAround)
				sp.Process.Cwd = "/tmp"
				sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/probe", Source: filepath.Dir(probe), Type: "bind", Options: []string{"bind", "ro", "rprivate"}})
				tt.edit(sp)
				return testBundle(t, sp)
			}
			b := bundleOf("direct")
			got, err := runBundle(t, s, b)
			if err != nil {
				t.Fatal(err)
			}
			want, err := runcRun(t, bundleOf("runc"))
			if err != nil {
				t.Fatal(err)
			}
			if os.Getenv("SHOW") != "" {
				t.Log(want)
			}
			compare(t, sections(got.stdout), sections(want), tt.known)
		})
	}
}

func compare(t *testing.T, got, want map[string][]string, known map[string]string) {
	t.Helper()
	if len(want) < 20 {
		t.Errorf("runc's container printed only %d sections", len(want))
	}
	for name, w := range want {
		g := got[name]
		if slices.Equal(g, w) || known[name] != "" {
			continue
		}
		t.Errorf("section %s", name)
		for _, line := range g {
			if !slices.Contains(w, line) {
				t.Errorf("  direct: %s", line)
			}
		}
		for _, line := range w {
			if !slices.Contains(g, line) {
				t.Errorf("  runc:   %s", line)
			}
		}
	}
}
