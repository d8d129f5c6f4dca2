package cgroup

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/fds"
)

// rule allows one kind of access to one device, or to many.
type rule struct {
	typ          byte  // 'b', 'c', or 'a' for both
	major, minor int64 // -1 is any
	access       access
}

// access is a set of what may be done with a device, in the bits of struct bpf_cgroup_dev_ctx.
type access uint8

const (
	mknod access = 1 << iota
	readDev
	writeDev
	anyAccess = mknod | readDev | writeDev
)

// rules are the devices that a group may use. They are an allow-list: what no rule names is denied.
type rules struct {
	all  bool // everything is allowed
	list []rule
}

// DefaultDevices are what every container may use, as with runc: it may make any device node, and open the
// harmless ones that its /dev has, and terminals.
func DefaultDevices() []specs.LinuxDeviceCgroup {
	var list []specs.LinuxDeviceCgroup
	for _, d := range defaultRules {
		list = append(list, d.spec())
	}
	return list
}

var defaultRules = []rule{
	{'c', -1, -1, mknod},
	{'b', -1, -1, mknod},
	{'c', 1, 3, anyAccess},    // null
	{'c', 1, 5, anyAccess},    // zero
	{'c', 1, 7, anyAccess},    // full
	{'c', 1, 8, anyAccess},    // random
	{'c', 1, 9, anyAccess},    // urandom
	{'c', 5, 0, anyAccess},    // tty
	{'c', 5, 2, anyAccess},    // ptmx
	{'c', 136, -1, anyAccess}, // pts
}

// parseRules reads the rules of an OCI runtime spec. See Spec.Devices.
func parseRules(devices []specs.LinuxDeviceCgroup) (rules, error) {
	set := rules{list: slices.Clone(defaultRules)}
	for i, d := range devices {
		r, err := parseRule(d)
		switch {
		case err != nil:
			return rules{}, err
		case d.Allow && r == rule{'a', -1, -1, anyAccess}:
			set = rules{all: true}
		case d.Allow:
			set.list = append(set.list, r)
		case i == 0 && r == rule{'a', -1, -1, anyAccess}:
			set.list = nil
		default:
			return rules{}, fmt.Errorf("device rule %q: %w: only the first rule may deny, and only everything", "deny "+r.String(), berth.ErrUnsupported)
		}
	}
	slices.SortFunc(set.list, func(a, b rule) int { return strings.Compare(a.String(), b.String()) })
	set.list = slices.Compact(set.list)
	return set, nil
}

func parseRule(d specs.LinuxDeviceCgroup) (rule, error) {
	r := rule{typ: 'a', major: -1, minor: -1}
	switch d.Type {
	case "a", "":
	case "b":
		r.typ = 'b'
	case "c", "u":
		r.typ = 'c'
	default:
		return r, fmt.Errorf("device rule of type %q: %w: the types are a, b and c", d.Type, berth.ErrInvalid)
	}
	for _, n := range []struct {
		from *int64
		to   *int64
		end  int64
	}{{d.Major, &r.major, 1 << 12}, {d.Minor, &r.minor, 1 << 20}} {
		if n.from == nil || *n.from == -1 {
			continue
		}
		if *n.from < 0 || *n.from >= n.end {
			return r, fmt.Errorf("device rule with number %d: %w", *n.from, berth.ErrInvalid)
		}
		*n.to = *n.from
	}
	if r.typ == 'a' && (r.major != -1 || r.minor != -1) {
		return r, fmt.Errorf("device rule for all devices with a number: %w", berth.ErrInvalid)
	}
	for _, c := range d.Access {
		switch c {
		case 'r':
			r.access |= readDev
		case 'w':
			r.access |= writeDev
		case 'm':
			r.access |= mknod
		default:
			return r, fmt.Errorf("device rule with access %q: %w: it is made of r, w and m", d.Access, berth.ErrInvalid)
		}
	}
	if d.Access == "" {
		r.access = anyAccess
	}
	return r, nil
}

// String is the rule as v1's devices.allow takes it.
func (r rule) String() string {
	return string(r.typ) + " " + number(r.major) + ":" + number(r.minor) + " " + r.access.String()
}

func (a access) String() string {
	var s strings.Builder
	for _, p := range []struct {
		a access
		s string
	}{{readDev, "r"}, {writeDev, "w"}, {mknod, "m"}} {
		if a&p.a != 0 {
			s.WriteString(p.s)
		}
	}
	return s.String()
}

func number(n int64) string {
	if n < 0 {
		return "*"
	}
	return strconv.FormatInt(n, 10)
}

func (r rule) spec() specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: true, Type: string(r.typ), Access: r.access.String()}
	if r.major >= 0 {
		d.Major = &r.major
	}
	if r.minor >= 0 {
		d.Minor = &r.minor
	}
	return d
}

// name of the cgroup whose device rules these are.
func (s rules) name() string {
	if s.all {
		return "_devices-all"
	}
	sum := sha256.New()
	for _, r := range s.list {
		sum.Write([]byte(r.String() + "\n"))
	}
	return "_devices-" + hex.EncodeToString(sum.Sum(nil)[:6])
}

// deviceGroup is the cgroup that holds these rules for all groups of an instance that have them: on v1 they
// are in it, on v2 below it. Setting rules costs much more than joining.
func (h *Host) deviceGroup(t *tree, spec Spec, set rules) (string, error) {
	dir := t.mount + t.at(spec.Parent) + "/" + path.Dir(spec.Path) + "/" + set.name()
	for try := 0; ; try++ {
		err := h.parent(t, dir)
		if err == nil {
			err = h.setRules(t, dir, set)
		}
		if err != nil && try < 100 && !exists(dir) {
			h.forget()
			continue
		}
		return dir, err
	}
}

// sharesRules says whether device rules of v1 are in cgroups of their own, which several groups may join.
func (h *Host) sharesRules() bool {
	t := h.v1[devices]
	return t != nil && !slices.Contains(h.v1[:devices], t) && !slices.Contains(h.v1[devices+1:], t)
}

// ruleBy puts a group of a pool, which nothing has joined, under other device rules of v1.
func (g *Group) ruleBy(spec Spec, set rules) error {
	t := g.host.v1[devices]
	if t == nil || !g.shared {
		return nil
	}
	dir, err := g.host.deviceGroup(t, spec, set)
	if err != nil || dir == g.v1[devices] {
		return err
	}
	fd, err := open(dir+"/tasks", unix.O_WRONLY)
	if err != nil {
		g.host.forget()
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, f := range g.join {
		if f.Name() == g.v1[devices]+"/tasks" {
			_ = f.Close()
			g.join[i], g.v1[devices] = os.NewFile(uintptr(fds.Aside(fd)), dir+"/tasks"), dir
			return nil
		}
	}
	_ = unix.Close(fd)
	return fmt.Errorf("device rules of cgroup %s: %w", g.path, berth.ErrNotFound)
}

func (h *Host) setRules(t *tree, dir string, set rules) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.rules[dir] || set.all || t.v2 && !h.ruled {
		return nil
	}
	var err error
	if t.v2 {
		err = set.applyV2(dir)
	} else {
		err = set.applyV1(dir)
	}
	if err == nil {
		h.rules[dir] = true
	}
	return err
}

// applyV1 writes the rules into a v1 cgroup and reads them back.
func (s rules) applyV1(dir string) error {
	if s.all || s.holdV1(dir) == nil {
		return nil
	}
	if err := write(dir+"/devices.deny", "a"); err != nil {
		return err
	}
	for _, r := range s.list {
		if err := write(dir+"/devices.allow", r.String()); err != nil {
			return err
		}
	}
	return s.holdV1(dir)
}

// holdV1 is nil if the cgroup has these rules and no others.
func (s rules) holdV1(dir string) error {
	got, err := read(dir + "/devices.list")
	if err != nil {
		return err
	}
	want := s.merged()
	lines := sorted(strings.Split(strings.TrimSpace(string(got)), "\n"))
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		return fmt.Errorf("device rules of %s are %q and not %q", dir, strings.Join(lines, ", "), strings.Join(want, ", "))
	}
	return nil
}

// merged are the rules as the kernel lists them: one line for a device, whatever the number of its rules.
func (s rules) merged() []string {
	by := map[rule]access{}
	for _, r := range s.list {
		key := r
		key.access = 0
		by[key] |= r.access
	}
	lines := make([]string, 0, len(by))
	for r, a := range by {
		r.access = a
		lines = append(lines, r.String())
	}
	return sorted(lines)
}
