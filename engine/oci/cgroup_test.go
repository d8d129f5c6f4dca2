package oci_test

import (
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
