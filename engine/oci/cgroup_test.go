package oci_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

// TestCgroupOfContainer looks at a container's cgroup from inside: it is the root of what the container sees,
// has the limits, cannot be written, and keeps it from devices whatever nodes it makes.
func TestCgroupOfContainer(t *testing.T) {
	limits := "memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us"
	want := "/\n67108864\n67108864\n20\n50000\n"
	if onV2(t) {
		limits = "memory.max memory.swap.max pids.max cpu.max"
		want = "/\n67108864\n0\n20\n50000 100000\n"
	}
	script := "cut -d: -f3 /proc/self/cgroup | sort -u; cd /sys/fs/cgroup && cat " + limits + `
		for f in ` + limits + `; do (echo 1 >$f) 2>/dev/null && echo written $f; done
		for d in "c 10 229" "c 1 11" "c 5 1" "b 7 0"; do
			mknod /tmp/node $d && (exec 9<>/tmp/node) 2>&1 | grep -o 'Operation not permitted' && rm /tmp/node
		done
		mknod /tmp/null c 1 3 && echo x >/tmp/null && echo null`
	want += strings.Repeat("Operation not permitted\n", 4) + "null\n"
	for _, rt := range []string{"direct", "runc", "crun"} {
		t.Run(rt, func(t *testing.T) {
			e, img := newEngine(t, rt)
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := sb.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			c := start(t, sb, berth.StepSpec{
				ID: "s1", Image: img, Command: []string{"sh", "-c", script},
				Limits: berth.Limits{CPU: 0.5, Memory: 64 << 20, PIDs: 20},
			})
			if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
				t.Errorf("%+v, %v", exit, err)
			}
			if got := logs(t, c, false); got != want {
				t.Errorf("it says\n%swant\n%s\n%s", got, want, logs(t, c, true))
			}
		})
	}
}

// An OCI runtime finds what is above its cgroup gone when another berth has just ended: it makes the container once more.
func TestCgroupThatIsLost(t *testing.T) {
	if onV2(t) {
		t.Skip("berth itself makes the one cgroup that there is: TestCgroupOfContainer")
	}
	words := map[string]string{
		"runc": `runc create failed: unable to start container process: unable to apply cgroup configuration: mkdir %s: no such file or directory`,
		"crun": "creating cgroup directory `%s`: No such file or directory",
	}
	for _, row := range []struct {
		name, rt string
		times    int
	}{{"once", "runc", 1}, {"once, crun", "crun", 1}, {"always", "runc", 1000}} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			script := filepath.Join(dir, row.rt)
			said := fmt.Sprintf(words[row.rt], "/sys/fs/cgroup/cpuacct'\"${cg%/*}\"'")
			err := os.WriteFile(script, fmt.Appendf(nil, `#!/bin/sh
for a; do
	case $prev in --log) log=$a;; --bundle) cg=$(sed 's/.*"cgroupsPath":"\([^"]*\)".*/\1/' "$a/config.json");; esac
	prev=$a
	[ "$a" = create ] && create=yes
done
n=$(cat %[1]s/n 2>/dev/null || echo 0)
if [ "$create" ] && [ "$n" -lt %[2]d ]; then
	echo $((n+1)) >%[1]s/n
	echo '{"level":"error","msg":"%[3]s"}' >>"$log"
	exit 1
fi
exec %[4]s "$@"
`, dir, row.times, said, row.rt), 0o755)
			if err != nil {
				t.Fatal(err)
			}
			e, img := newEngine(t, script)
			sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1"})
			c, err := sb.Start(t.Context(), berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "exit 5"}})
			if row.times > 1 {
				if err == nil || !strings.Contains(err.Error(), "unable to apply cgroup configuration") {
					t.Errorf("a cgroup that is lost each time: %v", err)
				}
			} else if err != nil {
				t.Error(err)
			} else if exit, err := c.Wait(t.Context()); err != nil || exit.Code != 5 {
				t.Errorf("%+v, %v", exit, err)
			}
			if n, err := os.ReadFile(filepath.Join(dir, "n")); err != nil || strings.TrimSpace(string(n)) != fmt.Sprint(min(row.times, 10)) {
				t.Errorf("it was lost %s times, %v", n, err)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
