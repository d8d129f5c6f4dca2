// Package grant is what engines do alike with lent devices: join what several grants bring into a container,
// compare it with the host before each start, and compare the container with it before its command runs.
//
// It starts nothing, and does not know how an engine brings a device into a container.
package grant

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// Set is what the grants of one sandbox bring into each of its containers.
type Set struct {
	// Edits are those of all grants, in their order, with every node's number, and with every node and group of
	// the grants. They are nil where nothing was lent.
	Edits *cdi.Edits
	// Nodes are the device nodes that a container holds, each path once.
	Nodes []berth.Node
	// Needed are those of the nodes, by their paths on the host, that programs compute with. The others come along with GPUs that
	// have a screen, and are of another group: DRM's primary nodes, and all of DRM beside NVIDIA's own.
	Needed []string
}

// Parse joins grants. ErrInvalid: edits that make no sense, or bring other nodes than their grant says;
// ErrConflict: two numbers for one path. It looks at no host.
func Parse(grants []berth.Grant) (*Set, error) {
	s := &Set{}
	for i := range grants {
		if err := s.add(&grants[i]); err != nil {
			return nil, fmt.Errorf("lent device %s: %w", Name(&grants[i]), err)
		}
	}
	for i := range s.Nodes {
		if err := s.complete(&s.Nodes[i]); err != nil {
			return nil, fmt.Errorf("lent device node %s: %w", path(&s.Nodes[i]), err)
		}
	}
	if s.Edits == nil {
		return s, nil
	}
	for _, d := range s.Edits.DeviceNodes {
		if d.Type != "p" && s.node(d.Path) == nil {
			return nil, fmt.Errorf("lent devices: %w: their edits bring %s, which is in no grant", berth.ErrInvalid, d.Path)
		}
	}
	return s, nil
}

// Name names a lent device for people.
func Name(g *berth.Grant) string {
	return cmp.Or(g.UUID, g.CDI, fmt.Sprintf("%s %d", g.Vendor, g.Index))
}

func path(n *berth.Node) string { return cmp.Or(n.Container, n.Host) }

func (s *Set) node(p string) *berth.Node {
	for i := range s.Nodes {
		if path(&s.Nodes[i]) == p {
			return &s.Nodes[i]
		}
	}
	return nil
}

func (s *Set) add(g *berth.Grant) error {
	for _, n := range g.Nodes {
		if err := checkNode(&n); err != nil {
			return err
		}
		old := s.node(path(&n))
		switch {
		case old == nil:
			s.Nodes = append(s.Nodes, n)
		case old.Type != n.Type || old.Major != n.Major || old.Minor != n.Minor || old.Host != n.Host:
			return fmt.Errorf("%s: %w: it is %s in one grant and %s in another", path(&n), berth.ErrConflict, number(old), number(&n))
		}
	}
	for _, n := range needed(g.Nodes) {
		if !slices.Contains(s.Needed, n) {
			s.Needed = append(s.Needed, n)
		}
	}
	var e cdi.Edits
	if len(g.Edits) > 0 {
		if err := json.Unmarshal(g.Edits, &e); err != nil {
			return fmt.Errorf("CDI edits: %w: %w", berth.ErrInvalid, err)
		}
		if err := cdi.ValidateEdits(&e); err != nil {
			return fmt.Errorf("CDI edits: %w: %w", berth.ErrInvalid, err)
		}
	}
	// A node that may not be used is none that is lent.
	e.DeviceNodes = slices.DeleteFunc(e.DeviceNodes, func(d *specs.DeviceNode) bool { return d.Permissions == "none" })
	for _, h := range e.Hooks {
		if !filepath.IsAbs(h.Path) {
			return fmt.Errorf("%s hook %q: %w: its path is not absolute", h.HookName, h.Path, berth.ErrInvalid)
		}
	}
	cdi.CloseHooks(&e)
	e.AdditionalGIDs = append(e.AdditionalGIDs, g.GIDs...)
	s.Edits = cdi.Append(s.Edits, &e)
	return nil
}

// needed are the nodes of one grant that programs compute with.
func needed(nodes []berth.Node) (names []string) {
	nvidia := slices.ContainsFunc(nodes, func(n berth.Node) bool { return strings.HasPrefix(filepath.Base(n.Host), "nvidia") })
	for _, n := range nodes {
		drm := filepath.Base(filepath.Dir(n.Host)) == "dri"
		if !drm || !nvidia && !strings.HasPrefix(filepath.Base(n.Host), "card") {
			names = append(names, n.Host)
		}
	}
	return names
}

func checkNode(n *berth.Node) error {
	switch {
	case !filepath.IsAbs(n.Host) || !filepath.IsAbs(path(n)):
		return fmt.Errorf("node %q: %w: its path is not absolute", n.Host, berth.ErrInvalid)
	case n.Type != "c" && n.Type != "b":
		return fmt.Errorf("node %s: %w: its type %q is neither c nor b", n.Host, berth.ErrInvalid, n.Type)
	case strings.Trim(n.Permissions, "rwm") != "":
		return fmt.Errorf("node %s: %w: permissions %q are not of rwm", n.Host, berth.ErrInvalid, n.Permissions)
	}
	return nil
}

// complete gives the edits a node of the grants: its number, where they leave it open, or the whole.
func (s *Set) complete(n *berth.Node) error {
	at := slices.IndexFunc(s.Edits.DeviceNodes, func(d *specs.DeviceNode) bool { return d.Path == path(n) })
	if at < 0 {
		s.Edits.DeviceNodes = append(s.Edits.DeviceNodes, &specs.DeviceNode{Path: path(n), Permissions: n.Permissions})
		at = len(s.Edits.DeviceNodes) - 1
	}
	for _, d := range s.Edits.DeviceNodes[at:] {
		if d.Path != path(n) {
			continue
		}
		major, minor := int64(n.Major), int64(n.Minor)
		if d.Type != "" && d.Type != n.Type && (d.Type != "u" || n.Type != "c") || d.Major != 0 && (d.Major != major || d.Minor != minor) {
			return fmt.Errorf("%w: it is %s in the grant, and %s %d:%d in its edits", berth.ErrConflict, number(n), d.Type, d.Major, d.Minor)
		}
		d.Type, d.Major, d.Minor = n.Type, major, minor
		if d.HostPath == "" && n.Host != d.Path {
			d.HostPath = n.Host
		}
		if n.Permissions == "" {
			n.Permissions = d.Permissions
		}
		d.Permissions = n.Permissions
	}
	return nil
}

func number(n *berth.Node) string { return fmt.Sprintf("%s %d:%d", n.Type, n.Major, n.Minor) }

// Fits compares what was lent with this host: numbers of nodes, files that are mounted, hooks, the driver's
// version. ErrConflict says what is no longer as it was when the devices were lent. It tells found, where that is not nil, of
// what is there to be mounted.
func (s *Set) Fits(found func(m *specs.Mount, dir bool)) error {
	if s.Edits == nil {
		return nil
	}
	causes, err := cdi.Compare(cdi.Host{}, s.Edits, found)
	if err != nil {
		return fmt.Errorf("lent devices: %w: %w", berth.ErrUnavailable, err)
	}
	if len(causes) == 0 {
		return nil
	}
	return fmt.Errorf("lent devices: %w: this host has changed since they were lent (was a driver loaded anew?): %s; run the task again, so that it is lent what is there now",
		berth.ErrConflict, strings.Join(causes, "; "))
}
