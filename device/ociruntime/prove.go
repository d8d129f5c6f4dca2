package ociruntime

import (
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
	"github.com/berth-project/berth/device/cdi/grant"
)

// lentNode is a node of what was lent, on a hook's command line: c:10:229:/dev/nvidia0.
func lentNode(n oci.LinuxDevice) string {
	kind := n.Type
	if kind == "u" {
		kind = "c"
	}
	return fmt.Sprintf("%s:%d:%d:%s", kind, n.Major, n.Minor, n.Path)
}

func parseLentNode(s string) (n berth.Node, err error) {
	f := strings.SplitN(s, ":", 4)
	if len(f) == 4 {
		_, err = fmt.Sscan(f[1]+" "+f[2], &n.Major, &n.Minor)
		n.Type, n.Host, n.Permissions = f[0], f[3], "rwm"
	}
	if len(f) != 4 || err != nil {
		return n, fmt.Errorf("%w: --node %q is not of the form c:195:0:/dev/nvidia0", berth.ErrInvalid, s)
	}
	return n, nil
}

// runtimeRules are what OCI runtimes allow every container on cgroup v1, beside what its spec says: /dev/net/tun in
// runc before 1.2, and in crun also /dev/console.
var runtimeRules = []berth.Node{{Type: "c", Major: 10, Minor: 200}, {Type: "c", Major: 5, Minor: 1}}

// prove compares the container with what it was lent, before its command runs: the nodes in its /dev and, on cgroup
// v1, its device rules. Devices that the engine gave it beside, and rules of its own, are not held against it, as far
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
	set := grant.Set{Nodes: lent}
	if err := set.ProveNodes(held); err != nil {
		return err
	}
	rules, err := grant.RulesOf(c.state.Pid)
	if errors.Is(err, grant.ErrNoRules) {
		return nil // v2 has a program, which is the runtime's own
	} else if err != nil {
		return err
	}
	if slices.Contains(rules, "a *:* rwm") {
		return nil // a privileged container may open everything
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

// number is one of a device rule, as v1 writes it.
func number(n *int64) string {
	if n == nil || *n < 0 {
		return "*"
	}
	return strconv.FormatInt(*n, 10)
}
