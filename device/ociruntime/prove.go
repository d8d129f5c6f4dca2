package ociruntime

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/grant"
)

// allAccess is what may be done with a device where nothing is said.
const allAccess = "rwm"

// lentNodes are the nodes that edits have brought, of all that a container has: with what the edits let it do with them, which
// is nothing less where several bring the same. One that may not be used is none that is lent.
func lentNodes(all []oci.LinuxDevice, edits *cdi.Edits) (lent []berth.Node) {
	for _, d := range all {
		n := berth.Node{Device: berth.Device{Host: d.Path}, Type: d.Type, Major: uint32(d.Major), Minor: uint32(d.Minor)}
		if n.Type == "u" {
			n.Type = "c"
		}
		for _, e := range edits.DeviceNodes {
			if e.Path == d.Path && e.Permissions != "none" {
				n.Permissions = join(n.Permissions, cmp.Or(e.Permissions, allAccess))
			}
		}
		if n.Permissions != "" {
			lent = append(lent, n)
		}
	}
	return lent
}

// join is the access in a or in b.
func join(a, b string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(a+b, r) {
			return r
		}
		return -1
	}, allAccess)
}

// lentNode is a node of what was lent, on a hook's command line: c:10:229:rwm:/dev/nvidia0.
func lentNode(n berth.Node) string {
	return fmt.Sprintf("%s:%d:%d:%s:%s", n.Type, n.Major, n.Minor, n.Permissions, n.Host)
}

func parseLentNode(s string) (n berth.Node, err error) {
	f := strings.SplitN(s, ":", 5)
	if len(f) == 5 {
		_, err = fmt.Sscan(f[1]+" "+f[2], &n.Major, &n.Minor)
		n.Type, n.Permissions, n.Host = f[0], f[3], f[4]
	}
	if len(f) != 5 || err != nil || n.Permissions == "" || strings.Trim(n.Permissions, allAccess) != "" {
		return n, fmt.Errorf("%w: --node %q is not of the form c:195:0:rwm:/dev/nvidia0", berth.ErrInvalid, s)
	}
	return n, nil
}

// runtimeRules are what OCI runtimes allow every container on cgroup v1, beside what its spec says: /dev/net/tun in
// runc before 1.2, and in crun also /dev/console.
var runtimeRules = []berth.Node{{Type: "c", Major: 10, Minor: 200}, {Type: "c", Major: 5, Minor: 1}}

// prove compares the container with what it was lent, before its command runs: the nodes in its /dev and its device
// rules. Devices that the engine gave it beside, and rules of its own, are not held against it, as far
// as the bundle's configuration says so.
func (c *container) prove(lent []berth.Node) error {
	var spec struct {
		Mounts []oci.Mount `json:"mounts"`
		Linux  oci.Linux   `json:"linux"`
	}
	if err := json.Unmarshal(c.spec, &spec); err != nil {
		return fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	}
	root, _, err := c.root()
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := root.Open("/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	held := grant.Container{Root: dir, Others: others(spec.Linux, lent)}
	for _, m := range spec.Mounts {
		bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		// A volume in /dev is the user's affair, as a whole /dev of the host's is.
		held.Bound = held.Bound || bind && (path.Clean(m.Destination) == "/dev" || strings.HasPrefix(path.Clean(m.Destination), "/dev/"))
	}
	set := grant.Set{Nodes: slices.Clone(lent)}
	if err := set.ProveNodes(held); err != nil {
		return err
	}
	rules, err := grant.RulesOf(c.state.Pid)
	if errors.Is(err, grant.ErrNoRules) {
		return c.provePrograms(spec.Linux.Resources, lent)
	} else if err != nil {
		return err
	}
	if slices.Contains(rules, "a *:* rwm") {
		return nil // a privileged container may open everything
	}
	for i := range set.Nodes {
		set.Nodes[i].Permissions = join(lent[i].Permissions, namedAccess(spec.Linux.Resources, lent[i]))
	}
	return set.ProveRules(beside(rules, spec.Linux.Resources, lent), grant.Container{}, runtimeRules...)
}

// others are the nodes that the engine gave the container beside what was lent.
func others(linux oci.Linux, lent []berth.Node) (all []berth.Node) {
	for _, d := range linux.Devices {
		n := berth.Node{Device: berth.Device{Host: d.Path}, Type: d.Type, Major: uint32(d.Major), Minor: uint32(d.Minor)}
		if !slices.ContainsFunc(lent, func(l berth.Node) bool { return same(l, n) }) {
			all = append(all, n)
		}
	}
	return all
}

func same(a, b berth.Node) bool { return a.Type == b.Type && a.Major == b.Major && a.Minor == b.Minor }

// beside are the device rules of a container without those that the engine gave it beside what was lent.
func beside(rules []string, r *oci.LinuxResources, lent []berth.Node) []string {
	given := map[string]bool{}
	if r != nil {
		for _, d := range r.Devices {
			if d.Allow {
				given[fmt.Sprintf("%s %s:%s", d.Type, number(d.Major), number(d.Minor))] = true
			}
		}
	}
	for _, n := range lent {
		delete(given, fmt.Sprintf("%s %d:%d", n.Type, n.Major, n.Minor))
	}
	return slices.DeleteFunc(rules, func(rule string) bool {
		device, _, _ := strings.Cut(rule, " ")
		number, _, _ := strings.Cut(strings.TrimPrefix(rule, device+" "), " ")
		return given[device+" "+number]
	})
}

// namedAccess is what the bundle's configuration lets the container do with a device by rules for that alone: those that brought
// it, and the engine's own where it has given the same.
func namedAccess(r *oci.LinuxResources, n berth.Node) (access string) {
	if r == nil {
		return ""
	}
	for _, d := range r.Devices {
		if d.Allow && d.Type == n.Type && d.Major != nil && *d.Major == int64(n.Major) && d.Minor != nil && *d.Minor == int64(n.Minor) {
			access = join(access, d.Access)
		}
	}
	return access
}

// number is one of a device rule, as v1 writes it.
func number(n *int64) string {
	if n == nil || *n < 0 {
		return "*"
	}
	return strconv.FormatInt(*n, 10)
}
