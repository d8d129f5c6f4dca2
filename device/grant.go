package device

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/ledger"
)

// FromZero is a mask of n devices as the container that has them sees them: "0,1,2".
func FromZero(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = strconv.Itoa(i)
	}
	return strings.Join(all, ",")
}

// Grants says what devices that were lent to a task bring into its containers, whose environments are given; in the
// order of the vendors and their devices. notes are for people.
//
// Errors: berth.ErrExhausted where an image requires more of a driver than it has, berth.ErrUnavailable where a
// device or what it takes is no longer there, *cdi.StaleError for a spec of another program that does not fit
// the host.
func (p *Pool) Grants(ctx context.Context, task *berth.Task, lent []ledger.Device, envs [][]string) (grants []berth.Grant, notes []string, err error) {
	requests, err := ParseRequests(task.Resources.GPUs)
	if err != nil || len(lent) == 0 {
		return nil, nil, err
	}
	inv, err := p.inventory(ctx)
	if err != nil {
		return nil, nil, err
	}
	units, shares, err := inv.lent(lent)
	if err != nil {
		return nil, nil, err
	}
	if err := p.require(requests, units, envs); err != nil {
		return nil, nil, err
	}
	notes = append(othersImage(requests, units, envs), p.unseen(requests, units)...)
	for _, r := range requests {
		if len(r.Options) > 0 {
			notes = append(notes, fmt.Sprintf("options of GPUs (%s) have no effect, as with Docker's drivers", strings.Join(slices.Sorted(maps.Keys(r.Options)), ", ")))
		}
	}
	var capabilities, asked []string
	for _, r := range requests {
		asked = append(asked, r.IDs...)
		for _, word := range r.Capabilities {
			if !slices.Contains(capabilities, word) {
				capabilities = append(capabilities, word)
			}
		}
	}
	commons, once := map[string]*cdi.Edits{}, map[*cdi.Edits]bool{}
	for _, u := range units {
		in, err := p.inject(ctx, u, commons)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", u, err)
		}
		if err := p.ifUnread(asked, u, in); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", u, err)
		}
		for _, note := range in.notes {
			if !slices.Contains(notes, note) {
				notes = append(notes, note)
			}
		}
		g := berth.Grant{CDI: in.name, Vendor: u.Device.Vendor, UUID: u.UUID(), Index: u.Device.Index, Memory: shares[u.Key()], Capabilities: capabilities}
		edits := &cdi.Edits{}
		if in.common != nil && !once[in.common] {
			once[in.common] = true
			cdi.Append(edits, in.common)
		}
		cdi.Append(edits, in.own)
		if g.Nodes, g.GIDs, err = p.nodes(cdi.Append(nil, in.common, in.own)); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", u, err)
		}
		if g.Memory > 0 {
			notes = append(notes, fmt.Sprintf("the task's share of %s of %s is advisory: the driver does not enforce it", berth.SizeInWords(g.Memory), u))
		}
		if len(grants) == len(units)-1 {
			edits.Env = append(edits.Env, p.environment(units, shares)...)
		}
		if g.Edits, err = json.Marshal(edits); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", u, err)
		}
		grants = append(grants, g)
	}
	return grants, notes, nil
}

// lent finds the units that were lent, in the order of the host's, and by their keys the shares of them, in bytes.
func (inv *inventory) lent(lent []ledger.Device) (units []Unit, shares map[string]int64, err error) {
	shares = map[string]int64{}
	for _, d := range lent {
		u, ok := inv.unit(d.ID)
		if !ok {
			return nil, nil, fmt.Errorf("GPU %s, which was lent to the task: %w: it is not there any more%s", d.ID, berth.ErrUnavailable, inv.bounds())
		}
		units = append(units, u)
		shares[u.Key()] = d.Bytes
	}
	place := map[string]int{}
	for i, u := range Units(inv.all) {
		place[u.Key()] = i
	}
	slices.SortFunc(units, func(a, b Unit) int { return cmp.Compare(place[a.Key()], place[b.Key()]) })
	return units, shares, nil
}

// require checks what images ask of the drivers of all units. Which parts of NVIDIA's driver they use does not count where the
// task says it.
func (p *Pool) require(requests []Request, units []Unit, envs [][]string) error {
	says := slices.ContainsFunc(requests, func(r Request) bool {
		return slices.ContainsFunc(r.Capabilities, func(word string) bool {
			return word == "all" || word == "ngx" || slices.Contains(nvidiaWords, word)
		})
	})
	for _, env := range envs {
		values := map[string]string{}
		for _, e := range env {
			name, value, _ := strings.Cut(e, "=")
			values[name] = value
		}
		if says {
			delete(values, "NVIDIA_DRIVER_CAPABILITIES")
		}
		for _, u := range units {
			if r, ok := p.injector(u.Device.Vendor).(Requirer); ok {
				if err := r.Require(u, values); err != nil {
					return fmt.Errorf("%s: %w", u, err)
				}
			}
		}
	}
	return nil
}

// othersImage notes that an image is made for NVIDIA's GPUs where the task, which named no vendor, was lent others.
func othersImage(requests []Request, units []Unit, envs [][]string) []string {
	const nvidia = "nvidia"
	if slices.ContainsFunc(units, func(u Unit) bool { return u.Device.Vendor == nvidia }) ||
		slices.ContainsFunc(requests, func(r Request) bool { return len(r.IDs) > 0 || r.vendor() != "" }) {
		return nil
	}
	for _, env := range envs {
		for _, e := range env {
			if name, value, _ := strings.Cut(e, "="); value != "" && (name == "NVIDIA_REQUIRE_CUDA" || name == "CUDA_VERSION") {
				return []string{fmt.Sprintf("the image is made for NVIDIA's GPUs (%s), and the task was lent %s, since it names no vendor; ask for vendor=nvidia if it needs those", name, units[0])}
			}
		}
	}
	return nil
}

// environment is what a container with these units finds in its environment.
func (p *Pool) environment(units []Unit, shares map[string]int64) []string {
	var uuids, bytes []string
	for _, u := range units {
		uuids = append(uuids, u.UUID())
		if n := shares[u.Key()]; n > 0 {
			bytes = append(bytes, strconv.FormatInt(n, 10))
		}
	}
	env := []string{"BERTH_GPUS=" + strings.Join(uuids, ",")}
	if bytes != nil { // of shares: the task must keep to them itself
		env = append(env, "BERTH_GPU_MEMORY="+strings.Join(bytes, ","))
	}
	for _, v := range p.cfg.Vendors {
		of := slices.DeleteFunc(slices.Clone(units), func(u Unit) bool { return u.Device.Vendor != v.Name() })
		if len(of) > 0 {
			env = append(env, v.Env(of)...)
		}
	}
	// NVIDIA's own runtime, where it is an engine's default, must not add what an image's environment asks for.
	return append(env, "NVIDIA_VISIBLE_DEVICES=void")
}

// nodes are the nodes of edits with their numbers on this host now, and the groups that open them.
func (p *Pool) nodes(e *cdi.Edits) (nodes []berth.Node, gids []uint32, err error) {
	for _, d := range e.DeviceNodes {
		n, err := p.node(d)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
		}
		same := func(o berth.Node) bool { return o.Container == n.Container }
		if nodes = slices.DeleteFunc(nodes, same); d.Permissions != "none" {
			nodes = append(nodes, n)
		}
	}
	for _, gid := range e.AdditionalGIDs {
		if !slices.Contains(gids, gid) {
			gids = append(gids, gid)
		}
	}
	return nodes, gids, nil
}

func (p *Pool) node(d *specs.DeviceNode) (berth.Node, error) {
	at := cmp.Or(d.HostPath, d.Path)
	n := berth.Node{Device: berth.Device{Host: at, Container: d.Path, Permissions: cmp.Or(d.Permissions, "rwm")}}
	host := p.cfg.Host
	if !host.Recorded() {
		// What edits say of the host is in the words of this machine.
		host = thisHost
	}
	found, err := host.Node(at)
	if err != nil {
		return n, err
	}
	if d.Major != 0 && (int64(found.Major) != d.Major || int64(found.Minor) != d.Minor) {
		return n, fmt.Errorf("%s is %d:%d, and was %d:%d a moment ago", at, found.Major, found.Minor, d.Major, d.Minor)
	}
	n.Type, n.Major, n.Minor = found.Type, found.Major, found.Minor
	return n, nil
}

// thisHost is this machine, whose nodes it has itself.
var thisHost = &Host{root: "/"}
