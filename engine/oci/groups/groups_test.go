package groups

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/thread"
)

const gid = 4321

// nodes makes device nodes that can be opened on a plain host, in a directory that everybody comes to.
func nodes(t *testing.T) map[string]string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make device nodes and become another user")
	}
	dir, err := os.MkdirTemp("", "berth-groups-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// The nodes lie where others do not come.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "shut"), 0o700), os.Chown(filepath.Join(dir, "shut"), 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for name, node := range map[string]struct {
		mode     uint32
		uid, gid int
	}{
		"everybody's":      {0o666, 0, gid},
		"to be read":       {0o444, 0, gid},
		"the group's":      {0o660, 0, gid},
		"read by it":       {0o640, 0, gid},
		"root's":           {0o600, 0, 0},
		"the user's":       {0o600, 1000, 0},
		"of no members":    {0o660, 0, gid + 1},
		"of its own group": {0o660, 0, 1000},
	} {
		file := filepath.Join(dir, "shut", name)
		if err := unix.Mknod(file, unix.S_IFCHR|node.mode, int(unix.Mkdev(10, 237))); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chown(file, node.uid, node.gid), unix.Chmod(file, node.mode)); err != nil {
			t.Fatal(err)
		}
		all[name] = file
	}
	return all
}

func TestClosed(t *testing.T) {
	all := nodes(t)
	member, other := Person{UID: 1000, GID: 1000, Groups: []uint32{7, gid}}, Person{UID: 1000, GID: 1000}
	for _, c := range []struct {
		who    Person
		node   string
		closed bool
	}{
		{member, "everybody's", false},
		{other, "everybody's", false},
		{other, "to be read", false},
		{member, "the group's", false},
		{Person{UID: 1000, GID: gid}, "the group's", false},
		{other, "the group's", true},
		{member, "read by it", false},
		{other, "read by it", true},
		{member, "root's", true},
		{Person{}, "root's", false},
		{other, "the user's", false},
		{Person{UID: 1001, GID: 1000}, "the user's", true},
		{member, "of no members", true},
	} {
		want := map[bool]string{true: all[c.node]}[c.closed]
		for way, looks := range map[string][]func(wanted) error{
			"as it is": {access, open}, "an old kernel": {fails(unix.ENOSYS), open}, "an old seccomp profile": {fails(unix.EPERM), open},
		} {
			closed, err := c.who.closed([]string{all["everybody's"], all[c.node]}, looks...)
			if closed != want || err != nil {
				t.Errorf("%s: %+v, %s: %q, %v; want %q", way, c.who, c.node, closed, err, want)
			}
		}
	}
	// Nobody opens it: that is not for want of a group.
	if closed, err := member.closed([]string{all["the group's"]}, fails(unix.EPERM), fails(unix.EPERM)); !errors.Is(err, berth.ErrDenied) || !strings.Contains(err.Error(), closed+" opens for nobody here") {
		t.Errorf("%q, %v", closed, err)
	}
	if closed, err := member.Closed([]string{all["root's"] + " not"}); err == nil {
		t.Errorf("a node that is not there: %q", closed)
	}
	// This process is as it was.
	if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); d != 1 || err != nil {
		t.Errorf("dumpable: %d, %v", d, err)
	}
	for _, n := range []string{"the group's", "root's"} {
		if err := unix.Access(all[n], unix.R_OK|unix.W_OK); err != nil {
			t.Error(err)
		}
	}
}

func fails(errno syscall.Errno) func(wanted) error { return func(wanted) error { return errno } }

const inNamespace = "BERTH_TEST_GROUPS"

// TestKeep looks from a user namespace that has no name for the group, with it and without.
func TestKeep(t *testing.T) {
	if list := os.Getenv(inNamespace); list != "" {
		for name := range strings.SplitSeq(list, ":") {
			for _, p := range []Person{{Keep: true}, {UID: 5, GID: 5, Keep: true}, {UID: 5, GID: 5}} {
				closed, err := p.Closed([]string{name})
				t.Logf("%s %d %t: closed %t, %v", filepath.Base(name), p.UID, p.Keep, closed != "", err)
			}
			gids, err := Of([]string{name})
			t.Logf("%s of %v, %v", filepath.Base(name), gids, err)
		}
		return
	}
	all := nodes(t)
	for member, want := range map[bool][]string{
		true: {
			"the group's 0 true: closed false, <nil>", "the group's 5 true: closed false, <nil>", "the group's 5 false: closed true, <nil>",
			"root's 0 true: closed true, <nil>", "the user's 0 true: closed false, <nil>", "the user's 5 true: closed true, <nil>",
			"everybody's of [], <nil>", "the group's of [], <nil>", "root's of [], <nil>", "of its own group of [], <nil>", "of no members of [777], <nil>",
		},
		false: {"the group's 0 true: closed true, <nil>", "the group's 5 true: closed true, <nil>", "the user's 0 true: closed false, <nil>"},
	} {
		out := inUserNS(t, member, strings.Join(slices.Collect(maps.Values(all)), ":"))
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("member %t: no %q in\n%s", member, line, out)
			}
		}
	}
}

// skipUnseen skips a test whose files another user does not come to.
func skipUnseen(t *testing.T, file string) {
	t.Helper()
	for dir := filepath.Dir(file); dir != "/"; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err != nil || st.Mode()&0o001 == 0 {
			t.Skipf("other users do not come to %s (TMPDIR): %v", dir, err)
		}
	}
}

// inUserNS runs this test in a user namespace of the user 1000, of the group or not.
func inUserNS(t *testing.T, member bool, nodes string) string {
	t.Helper()
	test, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(strings.Split(nodes, ":")[0]), "../test")
	skipUnseen(t, program)
	if err := os.WriteFile(program, test, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.v", "-test.run=^TestKeep$")
	cmd.Dir, cmd.Env = "/", append(os.Environ(), inNamespace+"="+nodes)
	uids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 500}}
	// Groups of /etc/subgid have other numbers in a namespace.
	gids := append(slices.Clone(uids), syscall.SysProcIDMap{ContainerID: 777, HostID: gid + 1, Size: 1})
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: uids, GidMappings: gids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{NoSetGroups: true}, // what this thread has, which has no name there
	}
	var out []byte
	err = thread.Own(func() error {
		has := []uint32{}
		if member {
			has = append(has, gid)
		}
		if err := setgroups(has); err != nil {
			return err
		}
		out, err = cmd.CombinedOutput()
		return err
	})
	for _, forbidden := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.ENOSYS, unix.EINVAL} {
		if errors.Is(err, forbidden) {
			t.Skip("no user namespace can be made here: ", err)
		}
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	return string(out)
}
