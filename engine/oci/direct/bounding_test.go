package direct

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/thread"
)

// TestBoundingSet: a command's bounding set, and how late its timers may be, are the same whatever thread makes it.
func TestBoundingSet(t *testing.T) {
	late(t, 70_000)
	s := testStarter(t)
	usual := make([]string, 0, 16)
	for n, name := range capNames {
		if usualCaps.has(n) {
			usual = append(usual, name)
		}
	}
	const script = "awk '/^CapBnd/ { print $2 }' /proc/self/status; cat /proc/self/timerslack_ns"
	for name, tt := range map[string]struct {
		bounding []string
		want     capSet
		edit     func(*specs.Spec)
	}{
		"usual":   {bounding: usual, want: 0xa80425fb},
		"none":    {bounding: nil, want: 0},
		"fewer":   {bounding: []string{"CAP_CHOWN", "CAP_MKNOD"}, want: 1<<unix.CAP_CHOWN | 1<<unix.CAP_MKNOD},
		"more":    {bounding: []string{"CAP_CHOWN", "CAP_NET_ADMIN"}, want: 1<<unix.CAP_CHOWN | 1<<unix.CAP_NET_ADMIN},
		"admin":   {bounding: append(slices.Clip(usual), "CAP_SYS_ADMIN"), want: 0xa80425fb | 1<<unix.CAP_SYS_ADMIN},
		"user ns": {bounding: []string{"CAP_CHOWN"}, want: 1 << unix.CAP_CHOWN, edit: ownUserNamespace},
	} {
		t.Run(name, func(t *testing.T) {
			edit := func(b *bundle.Bundle) {
				b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: tt.bounding}
				if tt.edit != nil {
					tt.edit(b.Spec)
				}
			}
			want := fmt.Sprintf("%016x\n50000\n", uint64(tt.want))
			if got := run(t, s, script, edit); got.stdout != want {
				t.Errorf("started: %v, want %s", got, want)
			}
			further := shell(t, script)
			further.Capabilities = &specs.LinuxCapabilities{Bounding: tt.bounding}
			if got, err := execIn(t, startIdle(t, s, edit), further); err != nil || got.stdout != want {
				t.Errorf("further: %v, %v, want %s", got, err, want)
			}
		})
	}
}

// late lets the timers of all threads be late, and of those that they make.
func late(t *testing.T, slack int) {
	t.Helper()
	set := func(slack int) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if tid, err := strconv.Atoi(task.Name()); err == nil {
				if err := thread.SetSlack(tid, slack); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
					t.Fatal(err)
				}
			}
		}
	}
	set(slack)
	t.Cleanup(func() { set(thread.OrdinarySlack) })
}

// ownUserNamespace gives a container a user namespace whose ids are the host's.
func ownUserNamespace(spec *specs.Spec) {
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	spec.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 65536}}
	spec.Linux.GIDMappings = []specs.LinuxIDMapping{{Size: 65536}}
}
