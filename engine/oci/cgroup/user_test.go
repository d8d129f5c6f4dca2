package cgroup

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// outcomes is what a process of an ordinary user could do.
type outcomes struct {
	Version     Version
	Controllers []string
	Lacks       []string
	Place       string // where its groups are, below the mount point
	Own         string // its own cgroup after Find
	Sheltered   int    // how many processes are in the leaf then
	Limited     string // the error of a group with limits, or ""
	Kills       int64  // of a process that takes more memory than it may
	Again       string // the error of a group with limits after another berth undid what Find did, or ""
	Unlimited   string // the error of a group without limits, or ""
	Empty       bool   // that group is none
	Back        string // its own cgroup after Close
	Left        bool   // something is left after Close
	Others      int    // of its children, those that are where they were after Close
}

const aUser = 61234

// userHelper is that process: it prints its outcomes.
func userHelper(adopt bool, children string) error {
	ctx := context.Background()
	var o outcomes
	before, _ := ownV2()
	var others []*exec.Cmd
	for range len(children) {
		c := exec.CommandContext(ctx, "/proc/self/exe", "helper", "sleep")
		if err := c.Start(); err != nil {
			return err
		}
		defer func() { _ = errors.Join(c.Process.Kill(), c.Wait()) }()
		others = append(others, c)
	}
	h, err := Find(ctx, Options{Base: "berth-test", Adopt: adopt, Scope: "berth-test.scope"})
	if err != nil {
		return err
	}
	o.Version, o.Controllers = h.Version(), h.Controllers()
	for _, l := range h.Lacks() {
		o.Lacks = append(o.Lacks, l.What)
		if l.What == "a cgroup of the user's systemd" {
			fmt.Fprintln(os.Stderr, l.Why)
		}
	}
	slices.Sort(o.Lacks)
	if h.v2 != nil {
		o.Place = h.v2.base
	}
	o.Own, _ = ownV2()
	o.Sheltered = len(fields(h.shelters + "/" + leaf + "/cgroup.procs"))
	g, err := h.Make(Spec{Path: "inst/limited", Limits: Limits{CPU: 0.5, Memory: 32 * mib, PIDs: 50}})
	if err != nil {
		o.Limited = err.Error()
	} else {
		_ = command(ctx, g, "hog", "100000000").Run()
		if o.Kills, err = g.OOMKills(); err != nil {
			return err
		}
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			return err
		}
		if path.Base(o.Own) == leaf {
			o.Again = again(h)
		}
	}
	g, err = h.Make(Spec{Path: "inst/unlimited"})
	if err != nil {
		o.Unlimited = err.Error()
	} else {
		o.Empty = len(g.dirs()) == 0
		if err := command(ctx, g, "hog", "1000").Run(); err != nil {
			return err
		}
		if _, err := g.Usage(); err != nil {
			return err
		}
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			return err
		}
	}
	place := ""
	if h.v2 != nil {
		place = h.v2.mount + h.v2.base
	}
	if err := errors.Join(h.RemoveAll(ctx, "inst"), h.Close()); err != nil {
		return err
	}
	o.Back, _ = ownV2()
	o.Left = place != "" && (exists(place) || exists(filepath.Dir(place)+"/"+leaf))
	for _, c := range others {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Process.Pid)); err == nil && string(b) == "0::"+before+"\n" {
			o.Others++
		}
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// again makes a group with limits after what the end of another berth in the same place does.
func again(h *Host) string {
	err := errors.Join(removeTree(context.Background(), h.v2.mount+h.v2.base), outOfLeaf(h.shelters))
	if err == nil {
		_, err = h.Make(Spec{Path: "inst/again", Limits: Limits{CPU: 0.5, Memory: 32 * mib, PIDs: 50}})
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// asUser runs the helper as an ordinary user, in the cgroup dir where one is named.
func asUser(t *testing.T, dir, runtimeDir string, namespace, adopt bool, children int) outcomes {
	t.Helper()
	c := exec.CommandContext(t.Context(), "/proc/self/exe", "helper", "user", strconv.FormatBool(adopt), strings.Repeat("c", children))
	c.Env = []string{"XDG_RUNTIME_DIR=" + runtimeDir}
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: aUser, Gid: aUser}}
	if namespace {
		one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: aUser, Size: 1}}
		c.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER, UidMappings: one, GidMappings: one, Credential: &syscall.Credential{NoSetGroups: true},
		}
	}
	if dir != "" {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(f.Fd())
	}
	out, err := c.Output()
	if err != nil {
		t.Fatalf("as a user: %v %s", err, out)
	}
	var o outcomes
	if err := json.Unmarshal(out, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestUserOnV1(t *testing.T) {
	h := host(t)
	if h.Version() == V2 {
		t.Skip("needs v1 hierarchies: see TestUserOnV2")
	}
	o := asUser(t, "", "/nowhere", true, true, 0)
	for _, word := range []string{"CPU limit", berth.ErrUnsupported.Error(), "cgroup v1 can be written by root only", remedyV1} {
		if !strings.Contains(o.Limited, word) {
			t.Errorf("a limit: %q, want %q in it", o.Limited, word)
		}
	}
	o.Limited, o.Own, o.Back = "", "", ""
	want := outcomes{Version: h.Version(), Lacks: []string{"CPU limits", "I/O figures", "memory limits", "pids limits"}, Empty: true}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("%+v, want %+v", o, want)
	}
}

func TestUserOnV2(t *testing.T) {
	h := host(t)
	if !h.can(memory) || h.Version() != V2 {
		t.Skip("needs cgroup v2 with controllers: TestOnV2 runs it")
	}
	root := h.v2.mount
	give := func(dir string, owner int) string {
		t.Helper()
		dir = root + dir
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = removeTree(context.Background(), dir) })
		if owner != 0 {
			for _, f := range []string{"", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads"} {
				if err := os.Chown(dir+f, owner, owner); err != nil {
					t.Fatal(err)
				}
			}
		}
		return dir
	}
	enableDown := func(dir string) {
		t.Helper()
		rel, _ := filepath.Rel(root, dir)
		at := root
		for part := range strings.SplitSeq(rel, "/") {
			if err := enable(at); err != nil {
				t.Fatal(err)
			}
			at += "/" + part
		}
	}
	all := []string{"cpu", "io", "memory", "pids"}
	session := give(fmt.Sprintf("/user.slice/user-%d.slice/session-1.scope", aUser), 0)
	give(fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service", aUser, aUser), aUser)
	slice := give(fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service/app.slice", aUser, aUser), aUser)
	enableDown(slice)
	if err := enable(slice); err != nil {
		t.Fatal(err)
	}
	terminal := give(fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service/app.slice/terminal.scope", aUser, aUser), aUser)
	mine := give("/delegated", aUser)
	enableDown(mine)
	below := give("/delegated/shell", aUser)
	locked := give("/locked", aUser)
	enableDown(locked)
	if err := os.Chown(locked+"/cgroup.subtree_control", 0, 0); err != nil {
		t.Fatal(err)
	}
	unit := give("/system.slice/unit.service", aUser)
	enableDown(unit)
	if err := unix.Setxattr(unit, "user.delegate", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	scope := slice[len(root):] + "/berth-test.scope"
	none := []string{"CPU limits", "I/O figures", "memory limits", "pids limits"}
	byHand := "no cgroup here can be written by this user; as root: cd /sys/fs/cgroup && echo +cpu"
	for _, namespace := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			in     string
			bus    bool
			look   bool     // without Adopt
			ours   int      // children, which are in it too
			other  bool     // there is a process of another program
			want   outcomes // but for Own and Back, where they are the same as in
			refuse string   // why a limit is refused
		}{
			{name: "by systemd", in: session, bus: true, want: outcomes{
				Controllers: all, Place: scope + "/berth-test", Own: scope + "/" + leaf, Sheltered: 1, Kills: 1, Back: scope,
			}},
			// Its controllers are systemd's to give and to take.
			{name: "by systemd, out of a unit of its own", in: terminal, bus: true, other: true, want: outcomes{
				Controllers: all, Place: scope + "/berth-test", Own: scope + "/" + leaf, Sheltered: 1, Kills: 1, Back: scope,
			}},
			{name: "delegated unit", in: unit, bus: true, want: outcomes{
				Controllers: all, Place: "/system.slice/unit.service/berth-test", Own: "/system.slice/unit.service/" + leaf, Sheltered: 1, Kills: 1,
			}},
			{name: "delegated unit with others", in: unit, bus: true, other: true, want: outcomes{
				Controllers: all, Place: scope + "/berth-test", Own: scope + "/" + leaf, Sheltered: 1, Kills: 1, Back: scope,
			}},
			{name: "delegated", in: mine, want: outcomes{
				Controllers: all, Place: "/delegated/berth-test", Own: "/delegated/" + leaf, Sheltered: 1, Kills: 1,
			}},
			{name: "delegated, with others of this program", in: mine, ours: 2, want: outcomes{
				Controllers: all, Place: "/delegated/berth-test", Own: "/delegated/" + leaf, Sheltered: 3, Kills: 1,
			}},
			{
				name: "delegated, with others", in: mine, ours: 1, other: true, want: outcomes{Place: "/delegated/berth-test", Lacks: none},
				refuse: "the cpu controller of " + mine + " cannot be given to new cgroups while it has processes itself, and berth moves none but its own: sleep (",
			},
			{name: "in a part of what was delegated", in: below, ours: 1, other: true, want: outcomes{
				Controllers: all, Place: "/delegated/berth-test", Kills: 1,
			}},
			{
				name: "locked", in: locked, want: outcomes{Place: "/locked/berth-test", Lacks: none},
				refuse: "the cpu controller of " + locked + " cannot be given to new cgroups: " + locked + "/cgroup.subtree_control cannot be written by this user; as root: chown",
			},
			{name: "not delegated", in: session, want: outcomes{Lacks: none, Empty: true}, refuse: byHand},
			{name: "looking for systemd", in: session, bus: true, look: true, want: outcomes{Controllers: all, Empty: true}, refuse: byHand},
			{
				name: "looking at what is delegated", in: mine, look: true, ours: 1, want: outcomes{Controllers: all, Place: "/delegated/berth-test"},
				refuse: "CPU limit",
			},
			{
				name: "looking, with others", in: mine, look: true, other: true, want: outcomes{Place: "/delegated/berth-test", Lacks: none},
				refuse: "move them into a cgroup below it, in a shell: mkdir " + mine + "/shell && echo $$ >" + mine + "/shell/cgroup.procs",
			},
			{name: "looking, in a part of what was delegated", in: below, look: true, other: true, want: outcomes{
				Controllers: all, Place: "/delegated/berth-test",
			}, refuse: "CPU limit"},
		} {
			t.Run(fmt.Sprintf("%s, namespace %v", c.name, namespace), func(t *testing.T) {
				runtimeDir := "/nowhere"
				if c.bus {
					runtimeDir = fakeSystemd(t, slice)
				}
				for _, on := range fields(mine + "/cgroup.subtree_control") { // the case before left them
					if err := write(mine+"/cgroup.subtree_control", "-"+on); err != nil {
						t.Fatal(err)
					}
				}
				at := c.in[len(root):]
				other := 0
				if c.other {
					other = standing(t, c.in, "sleep", "1000")
				}
				o := asUser(t, c.in, runtimeDir, namespace, !c.look, c.ours)
				if (c.refuse == "") != (o.Limited == "") || !strings.Contains(o.Limited, c.refuse) {
					t.Errorf("a limit: %q, want %q", o.Limited, c.refuse)
				}
				o.Limited = ""
				c.want.Version = V2
				c.want.Others = c.ours
				c.want.Own, c.want.Back = cmp.Or(c.want.Own, at), cmp.Or(c.want.Back, at)
				if !reflect.DeepEqual(o, c.want) {
					t.Errorf("got\n%+v, want\n%+v", o, c.want)
				}
				if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", other)); c.other && string(b) != "0::"+at+"\n" {
					t.Errorf("another process is in %q, want %s; %v", b, at, err)
				}
				_ = removeTree(t.Context(), root+scope)
			})
		}
	}
}

// standing starts a process of the user in a cgroup, which stays until the end of the test.
func standing(t *testing.T, dir string, argv ...string) (pid int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: aUser, Gid: aUser}, UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c.Process.Pid
}

// fakeSystemd is a message bus on which the one thing that answers is a systemd that starts scopes in slice.
// It answers the directory of its socket.
func fakeSystemd(t *testing.T, slice string) string {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", dir+"/bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir+"/bus", 0o777); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if err := serveBus(c, slice); err != nil {
				fmt.Fprintln(os.Stderr, "bus:", err)
			}
			_ = c.Close()
		}
	}()
	return dir
}

func serveBus(c net.Conn, slice string) error {
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		word := strings.Fields(strings.TrimLeft(line, "\x00"))
		switch {
		case word[0] == "BEGIN":
			return serveMessages(c, r, slice)
		case word[0] == "AUTH" && len(word) == 1:
			_, err = c.Write([]byte("REJECTED EXTERNAL\r\n"))
		case word[0] == "AUTH": // the user is the one that the kernel names
			_, err = c.Write([]byte("DATA\r\n"))
		case word[0] == "DATA":
			_, err = c.Write([]byte("OK 0123456789abcdef0123456789abcdef\r\n"))
		default:
			_, err = c.Write([]byte("ERROR\r\n"))
		}
		if err != nil {
			return err
		}
	}
}

func serveMessages(c net.Conn, r *bufio.Reader, slice string) error {
	for {
		m, err := dbus.DecodeMessage(r)
		if err != nil {
			return nil //nolint:nilerr // the client has gone, which is how it ends
		}
		var body any
		switch member := m.Headers[dbus.FieldMember].Value(); member {
		case "Hello":
			body = ":1.1"
		case "StartTransientUnit":
			if err := startScope(slice, m.Body); err != nil {
				return err
			}
			body = dbus.ObjectPath("/org/freedesktop/systemd1/job/1")
		default:
			return fmt.Errorf("call of %v", member)
		}
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(m.Serial()), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body)),
		}, Body: []any{body}}
		// The library numbers messages only when it sends them itself.
		if err := reply.EncodeTo(&numbered{c}, binary.LittleEndian); err != nil {
			return err
		}
	}
}

// numbered gives each message that is written through it a number.
type numbered struct{ net.Conn }

func (n *numbered) Write(p []byte) (int, error) {
	if len(p) >= 12 {
		binary.LittleEndian.PutUint32(p[8:], 7)
	}
	return n.Conn.Write(p)
}

// startScope does what systemd does: it makes a cgroup, gives it to the user and moves the processes there.
func startScope(slice string, body []any) error {
	name := body[0].(string)
	dir := slice + "/" + name
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, f := range []string{"", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads"} {
		if err := os.Chown(dir+f, aUser, aUser); err != nil {
			return err
		}
	}
	delegate := false
	var procs []uint32
	for _, p := range body[2].([][]any) {
		switch v := p[1].(dbus.Variant).Value(); p[0] {
		case "Delegate":
			delegate = v.(bool)
		case "PIDs":
			procs = v.([]uint32)
		}
	}
	if !delegate {
		return errors.New("a scope without Delegate")
	}
	for _, pid := range procs {
		if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(int(pid))), 0); err != nil {
			return err
		}
	}
	return nil
}
