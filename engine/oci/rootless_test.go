package oci_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/berth-project/berth/engine/enginetest"
	"github.com/berth-project/berth/engine/enginetest/nested"
	"golang.org/x/sys/unix"
)

// aUser is the ordinary user of these tests, and its range of subordinate ids.
const (
	aUser    = 1000
	firstSub = 100_000
	subs     = 65_536
)

// onV2 reports whether this host's cgroups are of v2 alone.
func onV2(t testing.TB) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		t.Fatal(err)
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC
}

// TestSuiteRootless runs the suite as an ordinary user who is root of a user namespace, as package
// internal/cli/userns makes one.
func TestSuiteRootless(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: to become another user")
	}
	lacks, skips := map[enginetest.Ability]string{}, map[string]string{
		"bridge address is reachable":            "slirp4netns and pasta give no address that the host reaches",
		"container that differs from its grants": "in a user namespace hooks can make no device nodes",
	}
	if st, err := os.Stat("/dev/net/tun"); err != nil || st.Mode().Perm()&0o006 != 0o006 { // udev gives it to everybody
		lacks[enginetest.Bridge] = "slirp4netns and pasta need /dev/net/tun, which this host gives to root alone"
	}
	dir, runs := "", []string{"^TestSuite$/^direct$", "^TestSuite$/^(runc|crun)$" + core}
	if onV2(t) {
		runs = []string{"^TestSuite$/^direct$" + core} // the rest takes long in the machine
		dir = delegated(t)
	} else {
		for _, a := range []enginetest.Ability{enginetest.MemoryLimit, enginetest.CPULimit, enginetest.PIDsLimit, enginetest.UsageOf} {
			lacks[a] = "cgroup v1 can be written by root only"
		}
	}
	for _, run := range runs {
		out, err := asUser(t, dir, lacks, skips, "-test.run="+run)
		nested.Report(t, out)
		if err != nil && !t.Failed() {
			t.Errorf("%s: %v\n%s", run, err, out)
		}
	}
}

// asUser runs tests of this package as root of a user namespace, in the cgroup dir where one is named.
func asUser(t *testing.T, dir string, lacks map[enginetest.Ability]string, skips map[string]string, args ...string) ([]byte, error) {
	t.Helper()
	tmp, err := os.MkdirTemp("", "berth-rootless-") // not t.TempDir: another user must come to it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	if err := os.Chown(tmp, aUser, aUser); err != nil {
		t.Fatal(err)
	}
	lack, err := json.Marshal(lacks)
	if err != nil {
		t.Fatal(err)
	}
	skip, err := json.Marshal(skips)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{"-test.v"}, args...)...)
	fakes := filepath.Join(tmp, "fakes")
	if err := os.Mkdir(fakes, 0o755); err != nil {
		t.Fatal(err)
	}
	nodes, err := enginetest.FakeGPUs(fakes)
	if err != nil {
		t.Fatal(err)
	}
	lend, err := json.Marshal(nodes)
	if err != nil {
		t.Fatal(err)
	}
	c.Env = append(os.Environ(), lendableVar+"="+string(lend), "TMPDIR="+tmp, "HOME="+tmp, "XDG_RUNTIME_DIR=/nowhere", lacksVar+"="+string(lack), skipsVar+"="+string(skip))
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: aUser, Size: 1}, {ContainerID: 1, HostID: firstSub, Size: subs}}
	// /etc/subgid gives it the group of a fake GPU, too.
	const gpus, after = enginetest.FakeGID, enginetest.FakeGID + 1
	groups := []syscall.SysProcIDMap{maps[0], {ContainerID: 1, HostID: firstSub, Size: gpus - 1}, {ContainerID: gpus, HostID: gpus, Size: 1}, {ContainerID: after, HostID: firstSub + after - 1, Size: subs - after}}
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: maps, GidMappings: groups, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
	c.Dir = tmp
	if dir != "" {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(f.Fd())
	}
	return c.CombinedOutput()
}

// delegated is a cgroup that the user was given, with all controllers, as systemd gives one.
func delegated(t *testing.T) string {
	t.Helper()
	const root = "/sys/fs/cgroup"
	dir := filepath.Join(root, "delegated")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+cpu +io +memory +pids"), 0); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err := os.Chown(filepath.Join(dir, f), aUser, aUser); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		var dirs []string
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) { // what ended last may have left cgroups of its own
			waitFor(t, "the end of what was in "+d, ample, func() bool {
				err := os.Remove(d)
				return err == nil || errors.Is(err, fs.ErrNotExist) // a monitor that ends removes its own
			})
		}
	})
	return dir
}
