package docker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Orphans names the sandboxes of this owner of which the daemon has containers, volumes or networks, or this machine a CDI
// spec of their own, and this engine's directory has none. They may be another directory's, of this owner for another address
// of the daemon: who knows the owner's tasks says whether they are.
func (e *Engine) Orphans(ctx context.Context) ([]string, error) {
	left, err := e.labeled(ctx, e.filter())
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, t := range left {
		id := t.labels[LabelSandbox]
		if id != "" && (berth.CheckID(id) != nil || exists(e.sandboxDir(id))) || slices.Contains(ids, id) {
			continue
		}
		ids = append(ids, id)
	}
	host, err := e.daemon(ctx)
	if err != nil {
		return nil, err
	}
	specs, err := e.leftSpecs(host)
	if err != nil {
		return nil, err
	}
	ids = slices.AppendSeq(ids, maps.Keys(specs))
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Purge removes all that the daemon has of a sandbox, whoever has a record of it: containers, volumes, networks, with the
// labels of this owner and of the sandbox; and then, if this engine has no directory of it, its own CDI specs on this machine.
// It reports whether something was removed. A volume that the daemon takes for mounted is left, with ErrConflict: see removeVolume;
// and a container that has its labels of its image, without a word: see inherits.
func (e *Engine) Purge(ctx context.Context, id string) (removed bool, err error) {
	f := e.filter()
	if id != "" {
		f = f.Add("label", LabelSandbox+"="+id)
	}
	left, err := e.labeled(ctx, f)
	if err != nil {
		return false, err
	}
	var gone []string
	var errs []error
	for _, t := range left {
		if t.labels[LabelSandbox] != id || t.young {
			continue
		}
		was, err := t.remove(ctx, removed)
		if errors.Is(err, errHeld) {
			errs = append(errs, err)
			continue
		} else if err != nil {
			errs = append(errs, wrap(ctx, t.what, err))
			continue
		}
		removed = removed || was
		gone = append(gone, t.id)
	}
	tellRemoved(e.livesOf(id), gone)
	if len(errs) > 0 {
		return removed, errors.Join(errs...)
	}
	host, err := e.daemon(ctx)
	if err != nil {
		return removed, err
	}
	was, err := e.purgeSpecs(host, id)
	return removed || was, err
}

// labeled is a thing of this owner on the daemon.
type labeled struct {
	what, id string // "container 0123…"; a container's ID
	labels   map[string]string
	young    bool // it is another process's, which removes it
	// remove reports whether it was there. held: what goes with it has just been removed, and may hold it for a moment.
	remove func(ctx context.Context, held bool) (bool, error)
}

// labeled finds what this owner has, containers first, which hold the others. What the filter lets through is compared
// again: where Podman 4 is asked for two labels of volumes, it answers with what has either.
func (e *Engine) labeled(ctx context.Context, f client.Filters) (all []labeled, err error) {
	host, err := e.daemon(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := e.call(ctx)
	defer cancel()
	add := func(t labeled) {
		if t.labels[LabelOwner] == e.owner {
			all = append(all, t)
		}
	}
	cs, err := e.listContainers(ctx, client.ContainerListOptions{All: true, Filters: f})
	if err != nil {
		return nil, wrap(ctx, "list containers", err)
	}
	for _, c := range cs.Items {
		if theirs, err := e.inherits(ctx, c); err != nil {
			return nil, err
		} else if theirs {
			continue
		}
		young := c.Labels[LabelSandbox] == probeSandbox && time.Since(time.Unix(c.Created, 0).Add(-host.ahead)) < halfAge
		add(labeled{"container " + c.ID, c.ID, c.Labels, young, func(ctx context.Context, _ bool) (bool, error) { return e.removeContainer(ctx, c.ID) }})
	}
	vs, err := e.api().VolumeList(ctx, client.VolumeListOptions{Filters: f})
	if err != nil {
		return nil, wrap(ctx, "list volumes", err)
	}
	for _, v := range vs.Items {
		add(labeled{"volume " + v.Name, "", v.Labels, false, func(ctx context.Context, held bool) (bool, error) {
			return e.removeVolume(ctx, v.Labels[LabelSandbox], v.Name, held)
		}})
	}
	ns, err := e.listNetworks(ctx, client.NetworkListOptions{Filters: f})
	if err != nil {
		return nil, wrap(ctx, "list networks", err)
	}
	for _, n := range ns.Items {
		add(labeled{"network " + n.Name, "", n.Labels, false, func(ctx context.Context, held bool) (bool, error) { return e.removeNetwork(ctx, n.ID, held) }})
	}
	return all, nil
}

// inherits reports whether a container, which has a step's labels, has them of its image alone: one that somebody made of a
// task's container, as `docker commit` does, gives them to all that is run of it, and that is not berth's. Of a container with the
// name of the step's own nothing is asked. Where the image is not to be found nobody can say so, and the container is left alone.
func (e *Engine) inherits(ctx context.Context, c container.Summary) (bool, error) {
	sandbox, step := c.Labels[LabelSandbox], c.Labels[LabelStep]
	if step == "" || slices.Contains(c.Names, "/"+e.containerName(sandbox, step)) {
		return false, nil
	}
	img, _, err := e.imageFor(ctx, c.ImageID, platform{})
	if is(err, berth.ErrNotFound) {
		return true, nil
	}
	return img.Config.Labels[LabelOwner] == e.owner && img.Config.Labels[LabelSandbox] == sandbox, err
}

func (e *Engine) removeContainer(ctx context.Context, id string) (bool, error) {
	return e.removed(ctx, true, func(ctx context.Context) error {
		_, err := e.api().ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if err == nil || is(err, berth.ErrNotFound) {
			e.made.removed(id)
		}
		return err
	})
}

func (e *Engine) removeNetwork(ctx context.Context, id string, held bool) (bool, error) {
	return e.removed(ctx, held, func(ctx context.Context) error {
		_, err := e.api().NetworkRemove(ctx, id, client.NetworkRemoveOptions{})
		return err
	})
}

// removed makes a call that removes something, of what may be held again and again, and reports whether it was there.
func (e *Engine) removed(ctx context.Context, held bool, call func(context.Context) error) (bool, error) {
	var err error
	if held {
		err = e.insist(ctx, call)
	} else {
		cctx, cancel := e.call(ctx)
		defer cancel()
		err = call(cctx)
	}
	if is(err, berth.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
