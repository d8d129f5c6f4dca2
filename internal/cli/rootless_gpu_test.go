package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/devicetest"
)

// renderGID is the group of the fake GPUs' nodes, which are not everybody's.
const renderGID, cardGID = 4322, 4323

// groupGPU is a host with a GPU whose nodes are a group's, to which everybody can look. It has a screen, which is of another group.
func groupGPU(t *testing.T) *devicetest.Host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: to make device nodes")
	}
	h := devicetest.New(t, devicetest.Options{AMD: 1})
	if err := os.Chmod(filepath.Dir(h.Root), 0o755); err != nil {
		t.Fatal(err)
	}
	h.Write("/sys/module/amdgpu/drivers/pci:amdgpu/0000:50:00.0/drm/card0/dev", "226:0\n")
	card := h.Path("/dev/dri/card0")
	if err := errors.Join(unix.Mknod(card, unix.S_IFCHR|0o660, int(unix.Mkdev(10, 150))), os.Chown(card, 0, cardGID), os.Chmod(card, 0o660)); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"/dev/kfd", "/dev/dri/render*"} {
		files, err := filepath.Glob(h.Path(pattern))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, file := range files {
			if err := errors.Join(os.Chown(file, 0, renderGID), os.Chmod(file, 0o660)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return h
}

// TestRootlessGPUOfAGroup: an ordinary user who is of the nodes' group opens them in containers, whoever it is there; who is not, or
// cannot have it so, is told before the start.
func TestRootlessGPUOfAGroup(t *testing.T) {
	const noGroup, beside = "does not open for an ordinary user who is not of its group", "unsupported beside further groups (--group-add)"
	type run struct {
		args string // before the image
		says string // "" is that the node opens
	}
	for name, c := range map[string]struct {
		uid     uint32
		many    bool
		subgids []uint32
		groups  []uint32
		spec    bool // of CDI, with numbers of the host
		runs    []run
	}{
		"one id, of the group": {64131, false, nil, []uint32{renderGID}, false, []run{{"", ""}, {"--runtime crun", ""}, {"--runtime runc", ""}}},
		"one id, not of it":    {64132, false, nil, []uint32{7}, false, []run{{"", noGroup}, {"--runtime runc", noGroup}}},
		"of the group": {64133, true, nil, []uint32{7, renderGID}, false, []run{
			{"", ""},
			{"--user 1000:1000", ""},

			{"--runtime crun --user 1000:1000", ""},
			{"--runtime runc", "unsupported with the runtime runc"},
			{"--group-add 99", beside},
		}},
		"not of it": {64134, true, nil, nil, false, []run{{"", noGroup}, {"--user 1000:1000", noGroup}}},
		"with the group of its namespace": {64135, true, []uint32{renderGID}, nil, false, []run{
			{"", ""}, {"--user 1000:1000 --group-add 99", ""}, {"--runtime crun --user 1000:1000", ""}, {"--runtime runc --user 1000:1000", ""},
		}},
		"of its namespace, with a spec": {64137, true, []uint32{renderGID}, nil, true, []run{{"", ""}, {"--user 1000:1000", ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			h := groupGPU(t)
			if c.many {
				addUser(t, fmt.Sprintf("berth-cli-%d", c.uid), c.uid, c.subgids...)
			}
			b := ordinary(t, c.uid, "BERTH_GPU_ROOT="+h.Root)
			b.groups = append(c.groups, c.uid) // as a login has it
			if c.spec {
				code, spec, errs := berthOf(t, "", "cdi", "generate", "--root", h.Root)
				if code != 0 || !strings.Contains(spec, fmt.Sprint("- ", renderGID)) {
					t.Fatal(code, spec, errs)
				}
				h.Write("/etc/cdi/amd.yaml", strings.ReplaceAll(spec, h.Root, "")) // its paths are the host's
			}
			const script = `for n in /dev/dri/renderD* /dev/kfd; do { : <>$n; } 2>&1 && echo opened; done`
			for _, r := range c.runs {
				args := append([]string{"run", "--quiet", "--gpus", "1"}, strings.Fields(r.args)...)
				out, code := b.output(append(args, "bb", "sh", "-c", script)...)
				switch {
				case r.says == "" && (out != "opened\nopened\n" || code != 0):
					t.Errorf("%s: exit code %d, %s", r.args, code, out)
				case r.says != "" && (!strings.Contains(out, r.says) || strings.Contains(out, "opened") || code != 125):
					t.Errorf("%s: exit code %d, want %q: %s", r.args, code, r.says, out)
				}
			}
			b.clean()
		})
	}
}

// TestRootlessGPUExec: further commands of a container have the groups, too; and a monitor that was started without them says so.
func TestRootlessGPUExec(t *testing.T) {
	h := groupGPU(t)
	addUser(t, "berth-cli-64136", 64136)
	b := ordinary(t, 64136, "BERTH_GPU_ROOT="+h.Root)
	b.groups = []uint32{renderGID, b.uid}
	detach := func(args ...string) string {
		t.Helper()
		out, code := b.output(append(append([]string{"run", "--detach"}, args...), "bb", "sleep", "600")...)
		if code != 0 {
			t.Fatal(out)
		}
		return strings.TrimSpace(out)
	}
	var id string
	for _, runtime := range []string{"direct", "crun"} {
		id = detach("--gpus", "1", "--runtime", runtime)
		for _, user := range []string{"0", "1000:1000"} {
			var out string
			code := 1
			for range 100 { // until it runs
				if out, code = b.output("exec", "--user", user, id, "sh", "-c", "for n in /dev/dri/renderD*; do : <>$n && echo opened; done; id -G"); code == 0 {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			// The user's own group is 0 there: docs/security.md tells so.
			if f := strings.Fields(out); len(f) < 3 || f[0] != "opened" || !slices.Contains(f, "65534") || !slices.Contains(f, "0") {
				t.Errorf("%s, user %s: exit code %d, %s", runtime, user, code, out)
			}
		}
		if out, code := b.output("stop", id); code != 0 {
			t.Fatal(out)
		}
		b.clean()
	}
	endMonitor(b.data)
	b.groups = nil
	id = detach()
	b.groups = []uint32{renderGID}
	out, code := b.output("run", "--quiet", "--gpus", "1", "bb", "true")
	if code != 125 || !strings.Contains(out, "berth's monitor, process ") || !strings.Contains(out, " has not the groups by which ") {
		t.Errorf("exit code %d, %s", code, out)
	}
	if out, code := b.output("stop", id); code != 0 {
		t.Fatal(out)
	}
	b.clean()
}
