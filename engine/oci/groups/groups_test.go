package groups

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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
		"everybody's":   {0o666, 0, gid},
		"to be read":    {0o444, 0, gid},
		"the group's":   {0o660, 0, gid},
		"read by it":    {0o640, 0, gid},
		"root's":        {0o600, 0, 0},
		"the user's":    {0o600, 1000, 0},
		"of no members": {0o660, 0, gid + 1},
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
		closed, err := c.who.Closed([]string{all["everybody's"], all[c.node]})
		want := map[bool]string{true: all[c.node]}[c.closed]
		if closed != want || err != nil {
			t.Errorf("%+v, %s: %q, %v; want %q", c.who, c.node, closed, err, want)
		}
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

const inNamespace = "BERTH_TEST_GROUPS"

// TestKeep looks from a user namespace that has no name for the group, with it and without.
func TestKeep(t *testing.T) {
	if list := os.Getenv(inNamespace); list != "" {
		for name := range strings.SplitSeq(list, ":") {
			for _, p := range []Person{{Keep: true}, {UID: 5, GID: 5, Keep: true}, {UID: 5, GID: 5}} {
				closed, err := p.Closed([]string{name})
				t.Logf("%s %d %t: closed %t, %v", filepath.Base(name), p.UID, p.Keep, closed != "", err)
			}
		}
		return
	}
	all := nodes(t)
	for member, want := range map[bool][]string{
		true: {
			"the group's 0 true: closed false, <nil>", "the group's 5 true: closed false, <nil>", "the group's 5 false: closed true, <nil>",
			"root's 0 true: closed true, <nil>", "the user's 0 true: closed false, <nil>", "the user's 5 true: closed true, <nil>",
		},
		false: {"the group's 0 true: closed true, <nil>", "the group's 5 true: closed true, <nil>", "the user's 0 true: closed false, <nil>"},
	} {
		out := inUserNS(t, member, all["the group's"]+":"+all["root's"]+":"+all["the user's"])
		for _, line := range want {
			if !strings.Contains(out, line) {
				t.Errorf("member %t: no %q in\n%s", member, line, out)
			}
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
	if err := os.WriteFile(program, test, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.v", "-test.run=^TestKeep$")
	cmd.Dir, cmd.Env = "/", append(os.Environ(), inNamespace+"="+nodes)
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}, {ContainerID: 1, HostID: 100000, Size: 1000}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{NoSetGroups: true}, // what this thread has, which has no name there
	}
	result := make(chan []byte)
	go func() {
		runtime.LockOSThread() // and never unlocked
		gids := []uint32{}
		if member {
			gids = append(gids, gid)
		}
		if err := setgroups(gids); err != nil {
			t.Error(err)
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		result <- out
	}()
	return string(<-result)
}
