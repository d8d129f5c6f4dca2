package enginetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
)

// grants are the checks of lent devices: a sandbox's containers hold what it was lent, can use that, and nothing
// else of the kind.
func grants() []Check {
	return []Check{
		check("environment asks for no devices", asksForNone),
		check("lent device", lentDevice, Grants),
		check("lent device and no other", lentAlone, Grants),
		check("lent devices at once", lentAtOnce, Grants),
		check("lent device of a group", lentToGroup, Grants, Users),
		check("lent device in exec", lentInExec, Grants, Execs, Users),
		check("environment of lent devices", lentEnvironment, Grants),
		check("mounts of lent devices", lentMounts, Grants, Mounts),
		check("lent device that has changed", lentChanged, Grants),
		check("grants that make no sense", lentNonsense, Grants),
		check("hooks of lent devices", lentHooks, Grants, Hooks),
		check("hook that fails", hookFails, Grants, Hooks),
		check("container that differs from its grants", lentDiffers, Grants, Hooks),
	}
}

// lentPath is where the i-th fake GPU is in a container.
func lentPath(i int) string { return fmt.Sprintf("/dev/fake/gpu%d", i) }

// grant lends the i-th fake GPU, as lentPath(at).
func (t *trial) grant(i, at int) berth.Grant {
	n := t.env.Lendable[i]
	n.Container = lentPath(at)
	return berth.Grant{CDI: fmt.Sprintf("example.com/gpu=%d", i), Vendor: "example", UUID: fmt.Sprintf("GPU-%d", i), Index: i, Nodes: []berth.Node{n}}
}

// lent gives a sandbox grants.
func lent(grants ...berth.Grant) setup {
	return sandbox(func(s *berth.SandboxSpec) { s.Grants = append(s.Grants, grants...) })
}

// with is a grant with edits.
func with(g berth.Grant, edits map[string]any) berth.Grant {
	raw, err := json.Marshal(edits)
	if err != nil {
		panic(err) // it is made of plain values
	}
	g.Edits = raw
	return g
}

// asksForNone: NVIDIA's and AMD's runtimes give what the environment asks for; berth's containers ask for nothing.
func asksForNone(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	for _, row := range []struct {
		image, step, want []string
	}{
		{nil, nil, []string{"NVIDIA_VISIBLE_DEVICES=void"}},
		{[]string{"NVIDIA_VISIBLE_DEVICES=all"}, nil, []string{"NVIDIA_VISIBLE_DEVICES=void"}},
		{[]string{"NVIDIA_VISIBLE_DEVICES=all", "AMD_VISIBLE_DEVICES=all"}, []string{"NVIDIA_VISIBLE_DEVICES=0", "DOCKER_RESOURCE_GPU=1"}, []string{"AMD_VISIBLE_DEVICES=void", "DOCKER_RESOURCE_GPU=void", "NVIDIA_VISIBLE_DEVICES=void"}},
	} {
		spec := t.script("env | grep -E '^(NVIDIA_VISIBLE|AMD_VISIBLE|DOCKER_RESOURCE)' | sort")
		spec.Image.Config.Env = append(append([]string{}, spec.Image.Config.Env...), row.image...)
		spec.Env = row.step
		c, err := s.Start(t.ctx, spec)
		if err != nil {
			return err
		}
		o, err := t.end(c)
		if err != nil {
			return err
		}
		if err := o.wrote(strings.Join(row.want, "\n") + "\n"); err != nil {
			return fmt.Errorf("image %q, step %q: %w", row.image, row.step, err)
		}
	}
	return nil
}

// opens is a script that says whether a node can be opened.
func opens(path string) string {
	return fmt.Sprintf("if (exec 9<%s) 2>/dev/null; then echo 'opened %[1]s'; else echo 'cannot open %[1]s'; fi;", path)
}

// numbers is a script that prints the number of a device node, in hexadecimal.
func numbers(path string) string { return fmt.Sprintf("stat -c '%%F %%t:%%T' %s;", path) }

func (t *trial) numbersOf(i int) string {
	n := &t.env.Lendable[i]
	return fmt.Sprintf("character special file %x:%x\n", n.Major, n.Minor)
}

func lentDevice(t *trial) error {
	o, err := t.sh(numbers(lentPath(0))+opens(lentPath(0)), lent(t.grant(0, 0)))
	if err != nil {
		return err
	}
	if err := o.wrote(t.numbersOf(0) + "opened " + lentPath(0) + "\n"); err != nil {
		return err
	}
	// Its place is a later container's too.
	s, err := t.sandbox(lent(t.grant(1, 1)))
	if err != nil {
		return err
	}
	for range 2 {
		if o, err = t.in(s, opens(lentPath(1))); err != nil {
			return err
		}
		if err := o.wrote("opened " + lentPath(1) + "\n"); err != nil {
			return err
		}
	}
	return nil
}

// mknod is a script that makes the node of the i-th fake GPU, if it may, and tries to open it.
func (t *trial) mknod(i int) string {
	return fmt.Sprintf("mknod /tmp/other c %d %d 2>/dev/null; %s", t.env.Lendable[i].Major, t.env.Lendable[i].Minor, opens("/tmp/other"))
}

func lentAlone(t *trial) error {
	script := "ls /dev/fake;" + t.mknod(1) + opens(lentPath(0))
	o, err := t.sh(script, lent(t.grant(0, 0)), step(func(s *berth.StepSpec) { s.CapAdd = []string{"MKNOD"} }))
	if err != nil {
		return err
	}
	return o.wrote("gpu0\ncannot open /tmp/other\nopened " + lentPath(0) + "\n")
}

// lentAtOnce: while one sandbox has the one device and another the other, each has its own alone.
func lentAtOnce(t *trial) error {
	var running []berth.Container
	for i := range 2 {
		_, c, err := t.start(opens(lentPath(i))+"ls /dev/fake; echo ready; sleep 60", lent(t.grant(i, i)), shared)
		if err != nil {
			return err
		}
		running = append(running, c)
	}
	for i, c := range running {
		if err := t.ready(c); err != nil {
			return err
		}
		out, err := t.logs(c, berth.LogOptions{})
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("opened %s\ngpu%d\nready\n", lentPath(i), i); out != want {
			return fmt.Errorf("container %d wrote %s; want %s", i, quoted(out), quoted(want))
		}
	}
	for _, c := range running {
		if err := c.Stop(t.ctx, 0); err != nil {
			return err
		}
	}
	o, err := t.sh(fmt.Sprintf("ls %s %s 2>/dev/null | wc -l", lentPath(0), lentPath(1)))
	if err != nil {
		return err
	}
	return o.wrote("0\n")
}

// private is a grant of the fake GPU that is not for everybody.
func (t *trial) private() berth.Grant {
	g := t.grant(2, 0)
	g.GIDs = []uint32{FakeGID}
	// With its owner: otherwise CDI has the container's user own it.
	return with(g, map[string]any{"deviceNodes": []any{map[string]any{"path": lentPath(0), "hostPath": t.env.Lendable[2].Host, "uid": 0, "gid": FakeGID, "fileMode": 0o660}}})
}

func lentToGroup(t *trial) error {
	user := step(func(s *berth.StepSpec) { s.User, s.CapDrop = "1000:1000", []string{"ALL"} })
	o, err := t.sh("id -u; id -G | tr ' ' '\\n' | grep -x "+fmt.Sprint(FakeGID)+";"+opens(lentPath(0)), lent(t.private()), user)
	if err != nil {
		return err
	}
	return o.wrote(fmt.Sprintf("1000\n%d\nopened %s\n", FakeGID, lentPath(0)))
}

func lentInExec(t *trial) error {
	_, c, err := t.start("echo ready; sleep 60", lent(t.private()))
	if err != nil {
		return err
	}
	if err := t.ready(c); err != nil {
		return err
	}
	var out strings.Builder
	e, ok := c.(berth.Execer)
	if !ok {
		return errors.New("the container is no berth.Execer")
	}
	exit, err := e.Exec(t.ctx, berth.ExecSpec{Command: []string{"/bin/sh", "-c", opens(lentPath(0))}, User: "1000:1000"}, berth.Stdio{Out: &out})
	if err != nil {
		return err
	}
	if want := "opened " + lentPath(0) + "\n"; exit.Code != 0 || out.String() != want {
		return fmt.Errorf("exec ended with %+v and wrote %s; want %s", exit, quoted(out.String()), quoted(want))
	}
	return nil
}

// lentEnvironment: each of several grants brings a part, over what the step says.
func lentEnvironment(t *trial) error {
	first := with(t.grant(0, 0), map[string]any{"env": []string{"DRIVER=1", "MINE=the grant's"}})
	last := with(t.grant(1, 1), map[string]any{"env": []string{"BERTH_GPUS=GPU-0,GPU-1", "NVIDIA_VISIBLE_DEVICES=all"}})
	o, err := t.sh(`echo "$DRIVER $MINE $OTHER $BERTH_GPUS $NVIDIA_VISIBLE_DEVICES"; ls /dev/fake`,
		lent(first, last), step(func(s *berth.StepSpec) { s.Env = []string{"MINE=mine", "OTHER=mine"} }))
	if err != nil {
		return err
	}
	return o.wrote("1 the grant's mine GPU-0,GPU-1 void\ngpu0\ngpu1\n")
}

func lentMounts(t *trial) error {
	lib := filepath.Join(t.env.Dir, berth.NewID())
	if err := os.WriteFile(lib, []byte("library\n"), 0o644); err != nil {
		return err
	}
	o, err := t.sh(`cat /usr/lib/lib.so.1; (echo x >/usr/lib/lib.so.1) 2>/dev/null || echo read-only`, lent(with(t.grant(0, 0), map[string]any{
		"mounts": []any{map[string]any{"hostPath": lib, "containerPath": "/usr/lib/lib.so.1", "options": []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}}},
	})))
	if err != nil {
		return err
	}
	return o.wrote("library\nread-only\n")
}

// lentChanged: a node whose number is no longer what was lent is found before the start, by its name.
func lentChanged(t *trial) error {
	g := t.grant(0, 0)
	g.Nodes[0].Minor++
	gone := t.grant(0, 0)
	gone.Nodes[0].Host += "-gone"
	gone.Nodes[0].Major = 4000
	var errs []error
	for what, g := range map[string]berth.Grant{"another number": g, "no node": gone} {
		s, err := t.sandbox(lent(g))
		if err != nil {
			return err
		}
		_, err = s.Start(t.ctx, t.script("true"))
		if kerr := kind(what, err, berth.ErrConflict); kerr != nil {
			errs = append(errs, kerr)
		} else if !strings.Contains(err.Error(), g.Nodes[0].Host) {
			errs = append(errs, fmt.Errorf("%s: the error %w does not name %s", what, err, g.Nodes[0].Host))
		}
	}
	return errors.Join(errs...)
}

func lentNonsense(t *trial) error {
	other := t.grant(0, 0)
	other.Nodes[0].Minor++
	noType := t.grant(0, 0)
	noType.Nodes[0].Type = ""
	var errs []error
	for what, row := range map[string]struct {
		grants []berth.Grant
		kind   error
	}{
		"edits that are no edits":         {[]berth.Grant{with(t.grant(0, 0), map[string]any{"env": 3})}, berth.ErrInvalid},
		"a variable without a value":      {[]berth.Grant{with(t.grant(0, 0), map[string]any{"env": []string{"X"}})}, berth.ErrInvalid},
		"a hook without an absolute path": {[]berth.Grant{with(t.grant(0, 0), map[string]any{"hooks": []any{map[string]any{"hookName": "createContainer", "path": "hook"}}})}, berth.ErrInvalid},
		"edits with another node":         {[]berth.Grant{with(t.grant(0, 0), map[string]any{"deviceNodes": []any{map[string]any{"path": "/dev/null"}}})}, berth.ErrInvalid},
		"two numbers for one node":        {[]berth.Grant{t.grant(0, 0), other}, berth.ErrConflict},
		"a node of no type":               {[]berth.Grant{noType}, berth.ErrInvalid},
	} {
		_, err := t.sandbox(lent(row.grants...))
		errs = append(errs, kind(what, err, row.kind))
	}
	return errors.Join(errs...)
}

// hook is a grant with a createContainer hook that runs a script of the host's shell in the container's root, which
// lies in the bundle, with the state in $STATE.
func (t *trial) hook(script string) setup {
	script = `STATE=$(cat); cd "$(echo "$STATE" | tr -d '\n' | grep -o '"bundle": *"[^"]*"' | cut -d'"' -f4)/rootfs" || exit 9; ` + script
	return lent(with(t.grant(0, 0), map[string]any{"hooks": []any{map[string]any{
		"hookName": "createContainer", "path": "/bin/sh", "args": []string{"sh", "-c", script}, "env": []string{"HOOK=1"},
	}}}))
}

// lentHooks: a hook runs before the command, in the container's root, with its own environment and the container's state.
func lentHooks(t *trial) error {
	o, err := t.sh("cat /hooked; ls /dev/fake", t.hook(`{ echo "$STATE" | grep -o '"status":' | head -n 1; echo "$HOOK $SECRET"; } >hooked`), step(func(s *berth.StepSpec) { s.Env = []string{"SECRET=secret"} }))
	if err != nil {
		return err
	}
	return o.wrote("\"status\":\n1 \ngpu0\n")
}

// refuses starts a container whose start must fail, with words in the error, and its command must not run.
func (t *trial) refuses(s setup, words ...string) error {
	sb, err := t.sandbox(s, shared)
	if err != nil {
		return err
	}
	_, err = sb.Start(t.ctx, t.script("echo ran >/vol/ran"))
	if err == nil {
		return errors.New("the container started")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			return fmt.Errorf("the error %w does not say %q", err, w)
		}
	}
	root, rerr := sb.Volume(t.ctx, "/vol")
	if rerr != nil {
		return rerr
	}
	defer func() { _ = root.Close() }()
	if _, serr := root.Stat("ran"); serr == nil {
		return fmt.Errorf("the command ran, in spite of %w", err)
	}
	return nil
}

func hookFails(t *trial) error {
	return t.refuses(t.hook("echo no driver >&2; exit 3"), "no driver")
}

// lentDiffers: what is in a container is looked at before its command runs, and compared with what was lent.
func lentDiffers(t *trial) error {
	other := fmt.Sprintf("c %d %d", t.env.Lendable[1].Major, t.env.Lendable[1].Minor)
	var errs []error
	for what, row := range map[string]struct{ script, says string }{
		"a node is missing":  {"rm dev/fake/gpu0", lentPath(0)},
		"a node is another":  {"rm dev/fake/gpu0; mknod dev/fake/gpu0 " + other, lentPath(0)},
		"a node is too many": {"mknod dev/fake/gpu9 " + other, "/dev/fake/gpu9"},
	} {
		if err := t.refuses(t.hook(row.script), row.says); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	return errors.Join(errs...)
}
