package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/device/devicetest"
)

// renderGID is the group of the fake GPUs' nodes, which are not everybody's.
const renderGID = 4322

// groupGPU is a host with a GPU whose nodes are a group's, to which everybody can look.
func groupGPU(t *testing.T) *devicetest.Host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: to make device nodes")
	}
	h := devicetest.New(t, devicetest.Options{AMD: 1})
	if err := os.Chmod(filepath.Dir(h.Root), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"/dev/kfd", "/dev/dri/*"} {
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
		runs    []run
	}{
		"one id, of the group": {64131, false, nil, []uint32{renderGID}, []run{{"", ""}, {"--runtime crun", ""}, {"--runtime runc", ""}}},
		"one id, not of it":    {64132, false, nil, []uint32{7}, []run{{"", noGroup}, {"--runtime runc", noGroup}}},
		"of the group": {64133, true, nil, []uint32{7, renderGID}, []run{
			{"", ""},
			{"--user 1000:1000", ""},

			{"--runtime crun --user 1000:1000", ""},
			{"--runtime runc", "unsupported with the runtime runc"},
			{"--group-add 99", beside},
		}},
		"not of it": {64134, true, nil, nil, []run{{"", noGroup}, {"--user 1000:1000", noGroup}}},
		"with the group of its namespace": {64135, true, []uint32{renderGID}, nil, []run{
			{"", ""}, {"--user 1000:1000 --group-add 99", ""}, {"--runtime crun --user 1000:1000", ""}, {"--runtime runc --user 1000:1000", ""},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := groupGPU(t)
			if c.many {
				addUser(t, fmt.Sprintf("berth-cli-%d", c.uid), c.uid, c.subgids...)
			}
			b := ordinary(t, c.uid, "BERTH_GPU_ROOT="+h.Root)
			b.groups = c.groups
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
	b.groups = []uint32{renderGID}
	detach := func(args ...string) string {
		t.Helper()
		out, code := b.output(append(append([]string{"run", "--detach"}, args...), "bb", "sleep", "600")...)
		if code != 0 {
			t.Fatal(out)
		}
		return strings.TrimSpace(out)
	}
	id := detach("--gpus", "1")
	for _, user := range []string{"0", "1000:1000"} {
		var out string
		code := 1
		for range 100 { // until it runs
			if out, code = b.output("exec", "--user", user, id, "sh", "-c", "for n in /dev/dri/renderD*; do : <>$n && echo opened; done"); code == 0 {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if out != "opened\n" {
			t.Errorf("user %s: exit code %d, %s", user, code, out)
		}
	}
	if out, code := b.output("stop", id); code != 0 {
		t.Fatal(out)
	}
	b.clean()
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
