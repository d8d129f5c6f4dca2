package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/groups"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultLogLimit bounds each stream's log where a step says nothing, in bytes.
const defaultLogLimit = 64 << 20

// launch is one start in progress.
type launch struct {
	c       *container
	req     *wire.Start
	starter bundle.Starter
	spec    *specs.Spec
	bundle  *bundle.Bundle
	root    *mounting
	files   []*os.File // the container's ends
	console *os.File
	notes   []string // of what is not as it was asked for
}

func (l *launch) closeFiles() {
	for _, f := range l.files {
		_ = f.Close()
	}
	l.files = nil
	l.root.drop()
}

// prepare makes everything that the start needs. What it copies ends with copying.
func (l *launch) prepare(ctx, copying context.Context) error {
	early, err := l.mountEarly(ctx)
	if err != nil {
		return err
	}
	if err := l.read(ctx); err != nil {
		return err
	}
	if early {
		err = l.record()
	} else {
		err = l.fill(ctx, copying)
	}
	if err != nil {
		return err
	}
	c := l.c
	if l.starter.Name() != runtimeDirect || l.spec.Hooks != nil {
		if err := os.Mkdir(filepath.Join(c.dir, bundleDir), 0o755); err != nil {
			return err
		}
	}
	if err := l.makeGroup(); err != nil {
		return err
	}
	l.bundle.ID, l.bundle.Dir, l.bundle.Spec, l.bundle.Cgroup = c.name(), filepath.Join(c.dir, bundleDir), l.spec, c.group
	l.bundle.Init, l.bundle.NetNS = !c.step.NoInit, c.sb.net.NS
	if l.root != nil {
		l.bundle.Mount = l.root.take
	}
	if len(l.req.Lent) > 0 {
		l.bundle.Ready = l.prove
	}
	return l.openStreams()
}

// mountEarly begins to mount the root, which takes longest, while the rest of the spec is still to be read: where it is
// sure to be mounted here, and nothing is to be copied before.
func (l *launch) mountEarly(ctx context.Context) (bool, error) {
	if l.req.Runtime != "" && l.req.Runtime != runtimeDirect || l.copies() {
		return false, nil
	}
	mounts, ok := wire.Mounts(l.req.Spec)
	if !ok {
		return false, nil
	}
	l.c.runtime = runtimeDirect
	l.spec = &specs.Spec{Mounts: mounts}
	if err := l.makeDirs(); err != nil {
		return false, err
	}
	return true, l.beginMount(ctx)
}

// fill records the intent, copies what the image holds into the volumes, and mounts the root.
func (l *launch) fill(ctx, copying context.Context) error {
	if err := l.makeDirs(); err != nil {
		return err
	}
	if err := l.record(); err != nil {
		return err
	}
	if err := l.copyUp(copying); err != nil {
		return err
	}
	if err := l.imageVolumes(copying); err != nil {
		return err
	}
	return l.beginMount(ctx)
}

// beginMount begins to mount the root, or says what an OCI runtime is to mount.
func (l *launch) beginMount(ctx context.Context) error {
	c := l.c
	if err := l.joinNetwork(ctx); err != nil {
		return err
	}
	layers, like, plain, err := l.layers()
	if err != nil {
		return err
	}
	l.bundle = &bundle.Bundle{Like: like, Plain: plain, Root: bundle.Root{
		Layers: layers, Upper: c.upper(), Work: c.work(),
		Volatile: true, UserXattr: c.sb.m.rootless, NoDevices: !c.sb.m.rulesDevices(),
	}}
	if c.pooled() {
		l.root = mountRoot(l.bundle.Root, l.req.Places)
	}
	return nil
}

// read reads the spec, checks it, and finds what starts it.
func (l *launch) read(ctx context.Context) error {
	c := l.c
	spec, err := wire.DecodeSpec(l.req.Spec)
	if err != nil {
		return fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	}
	if l.spec != nil {
		spec.Mounts = l.spec.Mounts // without those that a layer has
	}
	l.spec = spec
	if l.spec.Process == nil || l.spec.Process.Capabilities == nil || l.spec.Linux == nil || l.spec.Root == nil {
		return fmt.Errorf("OCI spec: %w: it has no process, capabilities, root or linux part", berth.ErrInvalid)
	}
	if err := boundFiles(l.spec.Process); err != nil {
		return err
	}
	if err := l.makeNoNodes(); err != nil {
		return err
	}
	if err := l.opensLent(); err != nil {
		return err
	}
	if name := c.step.Image.Config.StopSignal; name != "" && c.step.StopSignal == "" {
		if _, err := berth.ParseSignal(name); err != nil {
			l.notes = append(l.notes, fmt.Sprintf("the image's stop signal %q is none: TERM takes its place", name))
		}
	}
	if l.req.DefaultSeccomp {
		quota := c.sb.area.Enforcement() == berth.DiskQuota
		if l.spec.Linux.Seccomp, err = c.sb.m.start.defaultSeccomp(l.spec.Process.Capabilities.Bounding, quota); err != nil {
			return err
		}
	}
	if l.starter, err = c.sb.m.start.forSpec(ctx, l.req.Runtime, l.spec); err != nil {
		return err
	}
	c.tame = !slices.Contains(l.spec.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
	c.runtime = l.starter.Name()
	return nil
}

// MaxFiles is how many files a process may have open, by its soft as by its hard limit, where nobody says and the monitor may
// have as many: as with Docker. Without a rule it would have the soft limit that Go has set for berth.
const MaxFiles = 1 << 20

// boundFiles limits the open files of a process that says nothing of them.
func boundFiles(p *specs.Process) error {
	const name = "RLIMIT_NOFILE"
	if slices.ContainsFunc(p.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == name }) {
		return nil
	}
	var own unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &own); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	n := min(own.Max, MaxFiles)
	p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: name, Soft: n, Hard: n})
	return nil
}

// makeNoNodes takes from a command what it could make device nodes with, where no device rules keep it from opening
// them; unless it was given that by name, of which a note tells.
func (l *launch) makeNoNodes() error {
	const mknod, admin = "CAP_MKNOD", "CAP_SYS_ADMIN"
	m, caps := l.c.sb.m, l.spec.Process.Capabilities
	if m.rootless || m.rulesDevices() {
		return nil // root of a user namespace can make none
	}
	for _, d := range l.spec.Linux.Devices {
		if !strings.HasPrefix(path.Clean(d.Path), "/dev/") {
			return fmt.Errorf("device %s: %w: where berth can set no device rules, as on this host, no device opens outside the container's /dev: give it a name there", d.Path, berth.ErrUnsupported)
		}
	}
	named := slices.ContainsFunc(l.req.Step.CapAdd, func(c string) bool {
		name := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		return name == "ALL" || name == "MKNOD"
	})
	if named && slices.Contains(caps.Bounding, mknod) || slices.Contains(caps.Bounding, admin) {
		l.notes = append(l.notes, "this host has no device rules of cgroups for berth: a command with CAP_MKNOD or CAP_SYS_ADMIN can open devices that it was not lent")
	}
	if named || !slices.Contains(caps.Bounding, mknod) {
		return nil
	}
	for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted, &caps.Inheritable, &caps.Ambient} {
		*set = slices.DeleteFunc(*set, func(c string) bool { return c == mknod })
	}
	spec, err := json.Marshal(l.spec) // as it is recorded: further commands get what the first has
	if err != nil {
		return fmt.Errorf("OCI spec: %w", err)
	}
	l.req.Spec = spec
	return nil
}

// opensLent refuses a container of an ordinary user that would open what it was lent by groups that who asks for it has, and
// this process has not.
func (l *launch) opensLent() error {
	if !l.c.sb.m.rootless || len(l.req.Needed) == 0 {
		return nil
	}
	u := &l.spec.Process.User
	who := groups.Person{UID: u.UID, GID: u.GID, Groups: u.AdditionalGids, Keep: l.spec.Annotations[groups.Keep] != "" || groups.Fixed()}
	switch closed, err := who.Closed(l.req.Needed); {
	case err != nil:
		return fmt.Errorf("lent devices: %w", err)
	case closed != "":
		return fmt.Errorf("lent devices: %w: berth's monitor, process %d, has not the groups by which %s opens: it was started before the user had them, and ends when it has had nothing to do for a while", berth.ErrUnavailable, os.Getpid(), closed)
	}
	return nil
}

// record records the intent: what has a record is found after a crash. Of one without, recover removes what makeDirs made.
func (l *launch) record() error {
	c := l.c
	raw, err := startRecord{startHead{l.req.Step, l.req.Layers}, l.req.Spec}.encode()
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(c.dir, startFile), raw, 0o600); err != nil { // as writeNew
		return err
	}
	return c.reserveExit()
}

// makeDirs makes the container's directories.
func (l *launch) makeDirs() error {
	c := l.c
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return err
	}
	c.made = true
	for spare, dir := range map[string]string{spareUpper: c.upper(), spareWork: c.work()} {
		err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(c.sb.area.Dir(), spare), unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
		if err != nil { // another container has it, or there was none
			err = os.Mkdir(dir, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *launch) makeGroup() error {
	c := l.c
	spec := cgroup.Spec{Path: c.sb.m.cfg.Instance + "/" + c.name(), Parent: c.sb.rec.Spec.CgroupParent}
	lim := limitsOf(c.sb.rec.Spec.Limits, c.step.Limits)
	spec.Limits = cgroup.Limits{CPU: lim.CPU, Memory: lim.Memory, PIDs: lim.PIDs}
	if l.spec.Linux.Resources != nil {
		spec.Devices = extraDevices(l.spec.Linux.Resources.Devices)
	}
	g, err := c.sb.m.takeGroup(spec, c.pooled())
	if err != nil {
		return err
	}
	c.group = g
	return nil
}

func limitsOf(whole, step berth.Limits) berth.Limits {
	if step.CPU == 0 {
		step.CPU = whole.CPU
	}
	if step.Memory == 0 {
		step.Memory = whole.Memory
	}
	if step.PIDs == 0 {
		step.PIDs = whole.PIDs
	}
	return step
}

// extraDevices are the rules that allow something beside the defaults, which a group has by itself: groups
// without any share their device rules.
func extraDevices(rules []specs.LinuxDeviceCgroup) []specs.LinuxDeviceCgroup {
	defaults := cgroup.DefaultDevices()
	return slices.DeleteFunc(slices.Clone(rules), func(r specs.LinuxDeviceCgroup) bool {
		return !r.Allow || slices.ContainsFunc(defaults, func(d specs.LinuxDeviceCgroup) bool { return sameRule(&r, &d) })
	})
}

func sameRule(a, b *specs.LinuxDeviceCgroup) bool {
	same := func(x, y *int64) bool { return x == y || x != nil && y != nil && *x == *y }
	return a.Allow == b.Allow && a.Type == b.Type && a.Access == b.Access && same(a.Major, b.Major) && same(a.Minor, b.Minor)
}

func (l *launch) joinNetwork(ctx context.Context) error {
	sb := l.c.sb
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.net == nil { // the sandbox is of an earlier monitor, whose networks are gone
		if err := sb.openNetwork(ctx); err != nil {
			return err
		}
	}
	return nil
}

// layers are those of the container's root: the image's, its skeleton and, where that can be, the files that
// berth gives the container. What it writes to them lies in its own writable layer then, with all else that it
// writes, and nothing has to be mounted. like names all but those files, and plain says where it has empty ones: see
// bundle.Bundle.
func (l *launch) layers() (layers []string, like string, plain map[string]bool, err error) {
	sk, err := l.c.sb.m.skeletons.of(l.req.Layers, l.req.Places)
	if err != nil {
		return nil, "", nil, err
	}
	plain = sk.plain.files()
	layers = sk.over(l.req.Layers)
	like = strings.Join(layers, "\n")
	own := l.takeFiles()
	switch {
	case len(own) == 0:
		return layers, like, plain, nil
	case sk.etc == nil || !l.c.pooled() || slices.ContainsFunc(l.spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == "/etc" }):
		// An OCI runtime gets them as every other engine gives them. At /etc something of the user's lies over ours.
		l.spec.Mounts = append(l.spec.Mounts, own...)
		return layers, like, plain, l.c.sb.mountFiles()
	}
	dir := filepath.Join(l.c.dir, layerDir)
	if err := l.layFiles(dir, own, sk.etc); err != nil {
		return nil, "", nil, fmt.Errorf("files of the container: %w", err)
	}
	return append([]string{dir}, layers...), like, plain, nil
}

// takeFiles takes the mounts of the sandbox's files out of the spec.
func (l *launch) takeFiles() (own []specs.Mount) {
	dir := filepath.Join(l.c.sb.dir, filesDir)
	l.spec.Mounts = slices.DeleteFunc(l.spec.Mounts, func(m specs.Mount) bool {
		ours := m.Type == "bind" && filepath.Dir(m.Source) == dir
		if ours {
			own = append(own, m)
		}
		return ours
	})
	return own
}

// layFiles makes a layer of the files at dir.
func (l *launch) layFiles(dir string, files []specs.Mount, like *unix.Stat_t) error {
	etc := filepath.Join(dir, "etc")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(etc, 0o755)); err != nil {
		return err
	}
	for _, m := range files {
		name := path.Base(m.Destination)
		if err := writeFile(filepath.Join(etc, name), l.c.sb.files()[name], 0o644); err != nil {
			return err
		}
	}
	return liken(etc, like)
}
