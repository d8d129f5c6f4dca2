package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/vmtest"
)

// The tests of this package again, where v2 has all controllers.
func TestOnV2(t *testing.T) {
	skip := "TestOnV2"
	if s := os.Getenv("BERTH_TEST_VM_RUN"); s != "" { // while working on one of them
		skip += "|^Test[^" + s + "]"
	}
	files := vmtest.Program(t, "runc")
	files["/bin/cgroup.test"] = vmtest.Build(t, ".")
	r := vmtest.Run(t, vmtest.Config{
		Files: files,
		Env:   []string{"BERTH_TEST_VERSION=v2", "TMPDIR=/mnt"},
		// I/O is counted where it reaches a disk.
		Disk:    256 << 20,
		Modules: append(vmtest.DefaultModules(), "virtio_pci", "virtio_blk"),
		Commands: [][]string{
			{"sh", "-c", "mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt && chmod 1777 /mnt"},
			{"cgroup.test", "-test.v", "-test.skip=" + skip},
		},
	})
	t.Logf("%s", r.Output)
	if r.Status[0] != 0 || r.Status[1] != 0 {
		t.Fail()
	}
}

// TestVersion keeps the tests above from passing on another layout than they mean.
func TestVersion(t *testing.T) {
	if want := os.Getenv("BERTH_TEST_VERSION"); want != "" && string(host(t).Version()) != want {
		t.Errorf("version %s, want %s", host(t).Version(), want)
	}
}

// On a hybrid host v2 alone can be seen in a mount namespace of one's own. It lacks the controllers that v1
// holds; all else is as it will be.
func TestOnV2WithoutControllers(t *testing.T) {
	if host(t).Version() != Hybrid {
		t.Skip("needs a hybrid host: elsewhere TestOnV2 covers it")
	}
	c := exec.CommandContext(t.Context(), "/proc/self/exe", "helper", "v2only", "-test.v",
		"-test.run=^(TestVersion|TestKillAndRemove|TestFreeze|TestDevices|TestRecovery|TestMakeRefuses|TestUnsupportedLimits)$")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	c.Env = append(os.Environ(), "BERTH_TEST_VERSION=v2")
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A limit that cannot be kept is refused, never forgotten.
func TestUnsupportedLimits(t *testing.T) {
	h := host(t)
	for what, l := range map[controller]Limits{cpu: {CPU: 1}, memory: {Memory: mib}, pids: {PIDs: 10}} {
		g, err := h.Make(Spec{Path: instance(t) + "/" + v1Names[what], Limits: l})
		if h.can(what) != (err == nil) || err != nil && !errors.Is(err, berth.ErrUnsupported) {
			t.Errorf("%s: can is %v: %v %v", v1Names[what], h.can(what), g, err)
		}
	}
	lacks := 0
	for _, l := range h.Lacks() {
		if l.What == "" || l.Why == "" || l.Remedy == "" {
			t.Errorf("lack without a reason or remedy: %+v", l)
		}
		lacks++
	}
	if all := h.can(cpu) && h.can(memory) && h.can(pids) && h.can(blkio); all != (lacks == 0) {
		t.Errorf("all controllers: %v; lacks: %+v", all, h.Lacks())
	}
}
