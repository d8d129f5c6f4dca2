package grant

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

func node(host, container string, major, minor uint32) berth.Node {
	return berth.Node{Device: berth.Device{Host: host, Container: container}, Type: "c", Major: major, Minor: minor}
}

func TestParse(t *testing.T) {
	ctl := node("/dev/nvidiactl", "", 195, 255)
	set, err := Parse([]berth.Grant{
		{
			UUID: "GPU-a", Nodes: []berth.Node{node("/dev/nvidia3", "", 195, 3), ctl}, GIDs: []uint32{44},
			Edits: json.RawMessage(`{"env":["A=1"],"deviceNodes":[{"path":"/dev/nvidia3"},{"path":"/dev/nvidiactl","permissions":"rw"},{"path":"/dev/nvidia-of-no-use","permissions":"none"}],
				"hooks":[{"hookName":"createContainer","path":"/h"},{"hookName":"createContainer","path":"/i","env":["X=1"]}]}`),
		},
		{UUID: "GPU-b", Nodes: []berth.Node{node("/host/dev/nvidia5", "/dev/nvidia5", 195, 5), ctl}, GIDs: []uint32{44, 45}, Edits: json.RawMessage(`{"env":["B=2"]}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(set.Edits)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"env":["A=1","B=2"],"deviceNodes":[{"path":"/dev/nvidia3","type":"c","major":195,"minor":3},{"path":"/dev/nvidiactl","type":"c","major":195,"minor":255,"permissions":"rw"},` +
		`{"path":"/dev/nvidia5","hostPath":"/host/dev/nvidia5","type":"c","major":195,"minor":5}],` +
		`"hooks":[{"hookName":"createContainer","path":"/h","env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},{"hookName":"createContainer","path":"/i","env":["X=1"]}],"additionalGids":[44,44,45]}`
	if string(got) != want {
		t.Errorf("edits\n%s\nwant\n%s", got, want)
	}
	ctl.Permissions = "rw" // which only the edits say
	if want := []berth.Node{node("/dev/nvidia3", "", 195, 3), ctl, node("/host/dev/nvidia5", "/dev/nvidia5", 195, 5)}; !slices.Equal(set.Nodes, want) {
		t.Errorf("nodes %+v, want %+v", set.Nodes, want)
	}
	if none, err := Parse(nil); err != nil || none.Edits != nil || none.Fits(nil) != nil {
		t.Errorf("no grants: %+v, %v", none, err)
	}
}

// TestNeeded: a program computes without what comes along with a screen; of two vendors in one task each is looked at by itself.
func TestNeeded(t *testing.T) {
	kfd := node("/host/dev/kfd", "/dev/kfd", 234, 0)
	set, err := Parse([]berth.Grant{
		{Nodes: []berth.Node{node("/dev/nvidia0", "", 195, 0), node("/dev/nvidiactl", "", 195, 255), node("/dev/dri/card0", "", 226, 0), node("/dev/dri/renderD128", "", 226, 128)}},
		{Nodes: []berth.Node{node("/host/dev/dri/card1", "/dev/dri/card1", 226, 1), node("/host/dev/dri/renderD129", "/dev/dri/renderD129", 226, 129), kfd}},
		{Nodes: []berth.Node{node("/dev/dri/card2", "", 226, 2), node("/dev/dri/renderD130", "", 226, 130), kfd}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/dev/nvidia0", "/dev/nvidiactl", "/host/dev/dri/renderD129", "/host/dev/kfd", "/dev/dri/renderD130"}
	if diff := cmp.Diff(want, set.Needed); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	one := []berth.Node{node("/dev/x", "", 10, 1)}
	for name, tt := range map[string]struct {
		edits string
		kind  error
		says  string
	}{
		"no JSON":              {`{`, berth.ErrInvalid, "GPU-x"},
		"a relative hook":      {`{"hooks":[{"hookName":"createContainer","path":"h"}]}`, berth.ErrInvalid, "absolute"},
		"a hook of no stage":   {`{"hooks":[{"hookName":"x","path":"/h"}]}`, berth.ErrInvalid, "x"},
		"a node that is extra": {`{"deviceNodes":[{"path":"/dev/y"}]}`, berth.ErrInvalid, "/dev/y"},
		"another number":       {`{"deviceNodes":[{"path":"/dev/x","type":"c","major":10,"minor":2}]}`, berth.ErrConflict, "10:2"},
		"another type":         {`{"deviceNodes":[{"path":"/dev/x","type":"b"}]}`, berth.ErrConflict, "/dev/x"},
	} {
		_, err := Parse([]berth.Grant{{UUID: "GPU-x", Nodes: one, Edits: json.RawMessage(tt.edits)}})
		if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v; want %v with %q", name, err, tt.kind, tt.says)
		}
	}
}

func TestVoid(t *testing.T) {
	for _, tt := range []struct{ env, want string }{
		{"", "NVIDIA_VISIBLE_DEVICES=void"},
		{"A=1 NVIDIA_VISIBLE_DEVICES=all B=2", "A=1 NVIDIA_VISIBLE_DEVICES=void B=2"},
		{"NVIDIA_VISIBLE_DEVICES=0 NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES=void NVIDIA_VISIBLE_DEVICES=void"},
		{"AMD_VISIBLE_DEVICES=all DOCKER_RESOURCE_GPU=1 ROCR_VISIBLE_DEVICES=0", "AMD_VISIBLE_DEVICES=void DOCKER_RESOURCE_GPU=void ROCR_VISIBLE_DEVICES=0 NVIDIA_VISIBLE_DEVICES=void"},
	} {
		if got := strings.Join(Void(strings.Fields(tt.env)), " "); got != tt.want {
			t.Errorf("%q becomes %q, want %q", tt.env, got, tt.want)
		}
	}
}

func TestProveRules(t *testing.T) {
	const usual = "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:2 rwm\nc 136:* rwm\n"
	gpu := node("/dev/nvidia0", "", 195, 0)
	readOnly := node("/dev/nvidia1", "", 195, 1)
	readOnly.Permissions = "r"
	set := &Set{Nodes: []berth.Node{gpu, readOnly}}
	held := Container{Others: []berth.Node{node("/dev/fuse", "", 10, 229)}}
	own := usual + "c 10:229 rwm\nc 195:0 rwm\nc 195:1 r\n"
	for name, tt := range map[string]struct{ list, says string }{
		"exactly":         {own, ""},
		"rules in parts":  {usual + "c 10:229 rwm\nc 195:0 r\nc 195:0 wm\nc 195:1 r\n", ""},
		"another device":  {own + "c 195:2 rwm\n", `allow "c 195:2 rwm"`},
		"a whole driver":  {own + "c 195:* rwm\n", `allow "c 195:* rwm"`},
		"more access":     {own + "c 195:1 rw\n", `allow "c 195:1 rw"`},
		"everything":      {"a *:* rwm\n", `allow "a *:* rwm"`},
		"one is missing":  {usual + "c 10:229 rwm\nc 195:1 r\n", `do not allow "c 195:0 rwm"`},
		"less access":     {usual + "c 10:229 rwm\nc 195:0 rm\nc 195:1 r\n", `do not allow "c 195:0 w"`},
		"a runtime's own": {own + "c 10:200 rwm\n", `allow "c 10:200 rwm"`},
	} {
		err := set.ProveRules(strings.Split(strings.TrimSpace(tt.list), "\n"), held)
		if (err == nil) != (tt.says == "") || err != nil && (!errors.Is(err, ErrDiffers) || !errors.Is(err, berth.ErrConflict) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v; want %q", name, err, tt.says)
		}
	}
	if err := set.ProveRules(strings.Split(strings.TrimSpace(own+"c 10:200 rwm\n"), "\n"), held, node("", "", 10, 200)); err != nil {
		t.Errorf("what a runtime allows by itself: %v", err)
	}
}

func TestProveNodes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make device nodes")
	}
	set := &Set{Nodes: []berth.Node{node("/dev/dri/renderD129", "/dev/dri/renderD128", 10, 237)}}
	for name, tt := range map[string]struct {
		make []berth.Node
		held Container
		says string
	}{
		"exactly":         {[]berth.Node{node("", "dev/null", 1, 3), node("", "dev/dri/renderD128", 10, 237)}, Container{}, ""},
		"missing":         {[]berth.Node{node("", "dev/null", 1, 3)}, Container{}, "/dev/dri/renderD128 (c 10:237) is not there"},
		"may be missing":  {nil, Container{Optional: func(string) bool { return true }}, ""},
		"another":         {[]berth.Node{node("", "dev/dri/renderD128", 10, 229)}, Container{}, "c 10:229, and not c 10:237"},
		"too many":        {[]berth.Node{node("", "dev/dri/renderD128", 10, 237), node("", "dev/dri/renderD129", 10, 229)}, Container{}, "/dev/dri/renderD129 (c 10:229) is there"},
		"given besides":   {[]berth.Node{node("", "dev/dri/renderD128", 10, 237), node("", "dev/fuse", 10, 229)}, Container{Others: []berth.Node{node("/dev/fuse", "", 10, 229)}}, ""},
		"no kin":          {[]berth.Node{node("", "dev/dri/renderD128", 10, 237), node("", "dev/loop", 7, 1)}, Container{Kin: true}, ""},
		"kin":             {[]berth.Node{node("", "dev/dri/renderD128", 10, 237), node("", "dev/fuse", 10, 229)}, Container{Kin: true}, "/dev/fuse (c 10:229) is there"},
		"a GPU":           {[]berth.Node{node("", "dev/dri/renderD128", 10, 237), node("", "dev/nvidia1", 195, 1)}, Container{Kin: true}, "/dev/nvidia1 (c 195:1) is there"},
		"the host's /dev": {[]berth.Node{node("", "dev/dri/renderD128", 10, 237), node("", "dev/fuse", 10, 229)}, Container{Bound: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "dev/dri"), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, n := range tt.make {
				if err := unix.Mknod(filepath.Join(dir, n.Container), unix.S_IFCHR, int(unix.Mkdev(n.Major, n.Minor))); err != nil {
					t.Fatal(err)
				}
			}
			// What leads out of the root is not followed.
			if err := os.Symlink("/dev", filepath.Join(dir, "dev/host")); err != nil {
				t.Fatal(err)
			}
			root, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			tt.held.Root = root
			err = set.ProveNodes(tt.held)
			if (err == nil) != (tt.says == "") || err != nil && (!errors.Is(err, ErrDiffers) || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("%v; want %q", err, tt.says)
			}
		})
	}
}

// TestProveNodesBounds: a command that runs already may have filled its /dev.
func TestProveNodesBounds(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "dev/sub")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for i := range maxEntries - 1 { // with the directory itself as many as may be
		if err := unix.Mknod(filepath.Join(sub, strconv.Itoa(i)), unix.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&Set{}).ProveNodes(Container{Root: root}); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "more"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&Set{}).ProveNodes(Container{Root: root}); !errors.Is(err, berth.ErrExhausted) || errors.Is(err, ErrDiffers) {
		t.Errorf("one too many: %v", err)
	}
}

func TestGroupIn(t *testing.T) {
	const v1 = `24 19 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro
30 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 24 0:28 /docker/c1 /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
`
	const v2 = "30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	const hybrid = v1 + "32 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	for _, tt := range []struct {
		mounts, own string
		want        Group
	}{
		{v1, "3:devices:/docker/c1/berth/x\n2:cpu,cpuacct:/\n0::/\n", Group{"/sys/fs/cgroup/devices/berth/x", false}},
		{v1, "3:devices:/docker/c1\n", Group{"/sys/fs/cgroup/devices", false}},
		{v1, "3:devices:/docker/c2\n", Group{}},
		{v1, "0::/x\n", Group{}},
		{v2, "0::/x\n", Group{"/sys/fs/cgroup/x", true}},
		{v2, "3:devices:/docker/c1\n0::/x\n", Group{"/sys/fs/cgroup/x", true}}, // v1 is there, and not mounted here
		{hybrid, "3:devices:/docker/c1/y\n0::/x\n", Group{"/sys/fs/cgroup/devices/y", false}},
		{hybrid, "0::/x\n", Group{"/sys/fs/cgroup/unified/x", true}},
	} {
		if got, ok := groupIn(tt.own, tt.mounts); got != tt.want || ok != (got.Dir != "") {
			t.Errorf("%q: %v, want %v", tt.own, got, tt.want)
		}
	}
}

func TestFold(t *testing.T) {
	set, err := Parse([]berth.Grant{{Edits: json.RawMessage(`{"env":["A=1"],"hooks":[
		{"hookName":"createRuntime","path":"/opt/berth-cdi-hook","args":["h","limits"],"env":["X=1"]},
		{"hookName":"createContainer","path":"/opt/berth-cdi-hook","args":["h","links","--link","a::b"],"env":["X=1"]},
		{"hookName":"createContainer","path":"/opt/berth-cdi-hook","args":["h","cache"],"env":["X=1"]},
		{"hookName":"createContainer","path":"/opt/berth-cdi-hook","args":["h","profile"],"env":["X=1"]},
		{"hookName":"createContainer","path":"/opt/berth-cdi-hook","args":["h","other"],"env":["X=2"]},
		{"hookName":"createContainer","path":"/opt/berth-cdi-hook","args":["h","slow"],"env":["X=2"],"timeout":5},
		{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook","args":["n","a"],"env":["X=1"]},
		{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook","args":["n","b"],"env":["X=1"]}]}`)}})
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(set.Edits)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range Fold(set.Edits).Hooks {
		got = append(got, strings.Join(h.Args, " "))
	}
	want := []string{"h limits", "h links --link a::b ++ cache ++ profile", "h other", "h slow", "n a", "n b"}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if after, err := json.Marshal(set.Edits); err != nil || string(after) != string(before) {
		t.Errorf("the edits have changed: %s, %v", after, err)
	}
	if Fold(nil) != nil {
		t.Error("there is something in nothing")
	}
}

// TestHierarchies: what is known of mounts answers as what is looked up anew does, and what has become false is looked up again.
func TestHierarchies(t *testing.T) {
	want, bad := GroupOf(os.Getpid())
	h := &Hierarchies{}
	for range 2 {
		if got, err := h.groupOf(os.Getpid()); got != want || (err == nil) != (bad == nil) {
			t.Errorf("%+v, %v, want %+v, %v", got, err, want, bad)
		}
	}
	rules, bad := RulesOf(os.Getpid())
	h.mounts = strings.ReplaceAll(h.mounts, " /sys/", " /nowhere/sys/")
	if got, err := h.RulesOf(os.Getpid()); !slices.Equal(got, rules) || (err == nil) != (bad == nil) {
		t.Errorf("after its mounts have moved: %q, %v, want %q, %v", got, err, rules, bad)
	}
	h.mounts = "1 1 0:1 / /x rw - cgroup2 none rw\n"
	if _, err := h.groupOf(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no process: %v", err)
	}
}
