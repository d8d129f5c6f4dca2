package nvidia

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// The modes of generating what is not a GPU, as ByMode sorts names.
const (
	modeIMEX    = "imex"
	modeMIGCaps = "mig-caps"
)

// special is what a container gets beside GPUs where its environment enables it: nodes, and files of use with
// them.
var special = map[string]struct{ nodes, files []string }{
	"gds":      {[]string{"/dev/nvidia-fs*"}, []string{"/run/udev", "/etc/cufile.json"}},
	"mofed":    {[]string{"/dev/infiniband/uverbs*", "/dev/infiniband/rdma_cm"}, nil},
	"gdrcopy":  {[]string{"/dev/gdrdrv"}, nil},
	"nvswitch": {[]string{"/dev/nvidia-nvswitchctl", "/dev/nvidia-nvswitch*"}, nil},
}

// Special returns the edits of a mode that ByMode names beside "auto", for its IDs: gds, mofed, gdrcopy and
// nvswitch, which have none, imex and mig-caps. Edits without nodes say that the host has nothing of the kind,
// which is no error: images enable what they can use.
func (g Generator) Special(mode string, ids ...string) (*specs.ContainerEdits, error) {
	edits := &specs.ContainerEdits{}
	switch mode {
	case modeIMEX:
		channels, err := Channels(g.Host, ids...)
		if err != nil {
			return nil, err
		}
		for _, id := range channels {
			if err := g.addNode(edits, channelNode+id); err != nil {
				return nil, err
			}
		}
		return edits, nil
	case modeMIGCaps:
		return edits, g.addMIGControl(edits, ids)
	}
	s, ok := special[mode]
	if !ok {
		return nil, fmt.Errorf("%w: there is no mode %q", berth.ErrInvalid, mode)
	}
	for _, pattern := range s.nodes {
		for _, name := range g.Host.Glob(pattern) {
			if hasNode(edits, name) {
				continue
			}
			if err := g.addNode(edits, name); err != nil {
				return nil, err
			}
		}
	}
	if len(edits.DeviceNodes) > 0 {
		for _, file := range s.files {
			g.addFirst(edits, "", file, "/")
		}
	}
	return edits, nil
}

func hasNode(edits *specs.ContainerEdits, name string) bool {
	for _, n := range edits.DeviceNodes {
		if n.Path == name {
			return true
		}
	}
	return false
}

// addMIGControl adds the nodes with which a container divides GPUs ("config") or watches all slices ("monitor").
func (g Generator) addMIGControl(edits *specs.ContainerEdits, ids []string) error {
	text, err := g.Host.ReadFile("/proc/driver/nvidia-caps/mig-minors")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
	}
	caps := ParseMIGCaps(string(text))
	for _, id := range ids {
		if id != "config" && id != "monitor" {
			return fmt.Errorf("%w: MIG control %q: there are config and monitor", berth.ErrInvalid, id)
		}
		node, err := caps.Node(id)
		if err != nil {
			return err
		}
		if err := g.addNode(edits, node); err != nil {
			return fmt.Errorf("%w: %w; as root, run: nvidia-modprobe -f %s", berth.ErrUnavailable, err, CapFile(id))
		}
	}
	return nil
}

// migControl returns the names of what a container asks for to divide GPUs, or to watch all slices: only a
// privileged one may, and only one without single slices.
func (c Container) migControl(devices []string) ([]string, error) {
	var names []string
	for _, m := range []struct{ variable, id string }{{envMIGConfig, "config"}, {envMIGMonitor, "monitor"}} {
		value := c.Env[m.variable]
		switch {
		case value == "":
			continue
		case !strings.EqualFold(value, "all"):
			return nil, fmt.Errorf("%s=%s: %w: only all is allowed", m.variable, value, berth.ErrInvalid)
		case !c.Privileged:
			return nil, fmt.Errorf("%s: %w: only a privileged container may have it", m.variable, berth.ErrDenied)
		case slicesOnly(devices):
			return nil, fmt.Errorf("%s=%s: %w: the container has single MIG slices", m.variable, value, berth.ErrInvalid)
		}
		names = append(names, "mode="+modeMIGCaps+",id="+m.id)
	}
	return names, nil
}

// slicesOnly reports whether there is a MIG slice among devices that are not "all".
func slicesOnly(devices []string) bool {
	found := false
	for _, d := range devices {
		id := cdi.SplitName(d).Device
		kind := KindOf(id)
		found = found || kind == MIGIndex || kind == MIGUUID
		if id == "all" {
			return false
		}
	}
	return found
}
