package docker

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/grant"
)

// The drivers of device requests.
const (
	driverCDI    = "cdi"
	driverNVIDIA = "nvidia"
	vendorNVIDIA = "nvidia"
)

// lending is how the devices of a sandbox come into its containers.
type lending struct {
	set *grant.Set
	// optional says of a node that it may be missing: NVIDIA's own runtime brings some by capabilities.
	optional func(path string) bool
}

// lend has the daemon bring what the sandbox was lent into a container, by the first way that it has:
//
//  1. CDI, where the daemon does that (Podman does) and the specs that it reads have just what was lent, or the edits
//     take one and berth may write it: see ownSpec;
//  2. NVIDIA's own runtime, by UUID;
//  3. the same edits as devices, mounts, environment and groups. What cannot be said so is ErrUnsupported.
//
// A container never asks for other devices by its environment.
func (s *Sandbox) lend(host *hostInfo, cfg *container.Config, hc *container.HostConfig) (*lending, error) {
	whole, err := grant.Parse(s.spec.Grants)
	if err != nil {
		return nil, err
	}
	if err := whole.Fits(nil); err != nil {
		return nil, err
	}
	l := &lending{set: whole}
	env := cfg.Env
	var visible []string
	for _, of := range byVendor(s.spec.Grants) {
		set, err := grant.Parse(of)
		if err != nil {
			return nil, err
		}
		env = mergeEnv(env, set.Edits.Env)
		addGroups(hc, set.Edits.AdditionalGIDs)
		names := onDisk(host, of, set)
		var unwritten error
		if _, err := cdi.Translate(set.Edits, cdi.Host{}); err != nil && len(names) == 0 && mayWriteSpecs(host) {
			if names, unwritten = s.ownSpec(host, of[0].Vendor, set); errors.Is(unwritten, berth.ErrNotFound) {
				return nil, unwritten // the sandbox is gone
			}
		}
		switch {
		case len(names) > 0:
			hc.DeviceRequests = append(hc.DeviceRequests, container.DeviceRequest{Driver: driverCDI, DeviceIDs: names})
		case of[0].Vendor == vendorNVIDIA && slices.Contains(host.runtimes, driverNVIDIA) && !host.lends:
			visible = uuids(of)
			request, capabilities := byUUID(of)
			hc.DeviceRequests = append(hc.DeviceRequests, request)
			env = mergeEnv(env, capabilities)
			l.optional = func(p string) bool { return !ownNode.MatchString(p) }
		default:
			if err := translate(host, hc, set, of); err != nil && unwritten != nil {
				return nil, fmt.Errorf("%w; %w", err, unwritten)
			} else if err != nil {
				return nil, err
			}
		}
	}
	cfg.Env = grant.Void(env)
	if len(visible) > 0 { // as the daemon will say it, in the end, too
		cfg.Env = mergeEnv(cfg.Env, []string{"NVIDIA_VISIBLE_DEVICES=" + strings.Join(visible, ",")})
	}
	return l, nil
}

// byVendor parts grants by vendor; their order stays.
func byVendor(grants []berth.Grant) (parts [][]berth.Grant) {
	for _, g := range grants {
		i := slices.IndexFunc(parts, func(p []berth.Grant) bool { return p[0].Vendor == g.Vendor })
		if i < 0 {
			parts = append(parts, []berth.Grant{g})
		} else {
			parts[i] = append(parts[i], g)
		}
	}
	return parts
}

func addGroups(hc *container.HostConfig, gids []uint32) {
	for _, gid := range gids {
		if g := strconv.FormatUint(uint64(gid), 10); gid != 0 && !slices.Contains(hc.GroupAdd, g) {
			hc.GroupAdd = append(slices.Clip(hc.GroupAdd), g) // not into the step's own list
		}
	}
}

// onDisk are the CDI names of grants, if the daemon injects CDI devices, and what the specs that it reads have under
// these names fits the host and has the very nodes that were lent.
func onDisk(host *hostInfo, grants []berth.Grant, lent *grant.Set) (names []string) {
	if len(host.cdiDirs) == 0 {
		return nil
	}
	for _, g := range grants {
		if !cdi.IsQualified(g.CDI) {
			return nil
		}
		names = append(names, g.CDI)
	}
	cache := cdi.NewCache(cdi.Host{}, host.cdiDirs...).Without(cdi.IsLent)
	edits, _, err := cache.Resolve(names...)
	if err != nil || cache.Check(names...) != nil || !sameNodes(edits, lent) {
		return nil
	}
	return names
}

// sameNodes reports whether edits of specs bring the nodes that were lent, and no others.
func sameNodes(edits *cdi.Edits, lent *grant.Set) bool {
	have, want := map[string]bool{}, map[string]bool{}
	for _, d := range edits.DeviceNodes {
		if d.Permissions != "none" {
			have[cmp.Or(d.HostPath, d.Path)+" "+d.Path] = true
		}
	}
	for _, d := range lent.Edits.DeviceNodes {
		want[cmp.Or(d.HostPath, d.Path)+" "+d.Path] = true
	}
	return maps.Equal(have, want)
}

func uuids(grants []berth.Grant) (all []string) {
	for _, g := range grants {
		all = append(all, g.UUID)
	}
	return all
}

// nvidiaWords are the capabilities that dockerd's driver knows: all of NVIDIA's but ngx.
var nvidiaWords = []string{"compute", "compat32", "graphics", "utility", "video", "display"}

// byUUID asks dockerd's driver for NVIDIA's runtime. An index would be dockerd's, and could be another GPU. What the driver has
// no words for, the environment says. Where nothing was asked for, the image's own word counts: any other would override it.
func byUUID(grants []berth.Grant) (req container.DeviceRequest, env []string) {
	var asked []string
	for _, g := range grants {
		for _, w := range g.Capabilities {
			if (w == "all" || w == "ngx" || slices.Contains(nvidiaWords, w)) && !slices.Contains(asked, w) {
				asked = append(asked, w)
			}
		}
	}
	words := append([]string{"gpu"}, asked...)
	switch {
	case slices.Contains(asked, "all"):
		words, env = words[:1], []string{"NVIDIA_DRIVER_CAPABILITIES=all"}
	case slices.Contains(asked, "ngx"):
		words, env = words[:1], []string{"NVIDIA_DRIVER_CAPABILITIES=" + strings.Join(asked, ",")}
	}
	return container.DeviceRequest{Driver: driverNVIDIA, DeviceIDs: uuids(grants), Capabilities: [][]string{words}}, env
}

// ownNode are the nodes of a GPU or a slice of one, which NVIDIA's runtime brings in any case.
var ownNode = regexp.MustCompile(`^/dev/(nvidia\d+|nvidia-caps/.*)$`)

// translate says edits in terms of the API.
func translate(host *hostInfo, hc *container.HostConfig, set *grant.Set, grants []berth.Grant) error {
	t, err := cdi.Translate(set.Edits, cdi.Host{})
	if err != nil {
		return fmt.Errorf("lent device %s on this daemon: %w%s", grant.Name(&grants[0]), err, remedy(host, grants[0].Vendor))
	}
	for _, d := range t.Devices {
		hc.Devices = slices.DeleteFunc(hc.Devices, func(o container.DeviceMapping) bool { return o.PathInContainer == d.Container })
		hc.Devices = append(hc.Devices, container.DeviceMapping{PathOnHost: d.Host, PathInContainer: d.Container, CgroupPermissions: d.Permissions})
	}
	for _, m := range t.Mounts {
		target := path.Clean(m.Target)
		// As with CDI: what was lent comes before what the step mounts there.
		hc.Mounts = slices.DeleteFunc(hc.Mounts, func(o mount.Mount) bool { return path.Clean(o.Target) == target })
		hc.Mounts = append(hc.Mounts, mount.Mount{
			Type: mount.TypeBind, Source: m.Source, Target: target, ReadOnly: m.ReadOnly,
			BindOptions: &mount.BindOptions{Propagation: mount.Propagation(m.Propagation)},
		})
	}
	return nil
}

// remedy says what would let a daemon give a vendor's devices.
func remedy(host *hostInfo, vendor string) string {
	const here = "berth's own engine (--engine oci) injects them without a daemon"
	switch {
	case host.podman:
		return ": write its CDI spec, which Podman reads, as root (berth cdi generate --no-groups --output /etc/cdi/" + vendor + ".yaml), or run berth as root, which does; or " + here
	case len(host.cdiDirs) > 0:
		return ": write its CDI spec, which the daemon reads, as root (berth cdi generate --output " + host.cdiDirs[0] + "/" + vendor + ".yaml), or run berth as root, which does; or " + here
	case vendor != vendorNVIDIA:
		return ": " + here + "; or have a daemon of 28.3 or later read their CDI specs"
	}
	return ": install NVIDIA's container toolkit and make its runtime known to the daemon (nvidia-ctk runtime configure); or have a daemon of 28.3 or later read CDI specs (berth cdi generate); " + here
}
