package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Remove removes the group and what its processes made below it. Processes that are on their way out are
// waited for until ctx ends; one that stays is ErrConflict. No error if the group is gone.
func (g *Group) Remove(ctx context.Context) error {
	err := g.Close()
	for _, dir := range g.dirs() {
		err = errors.Join(err, removeTree(ctx, dir))
	}
	if err == nil {
		g.left.Do(func() { g.host.leave(g.beneath) })
	}
	return kind("remove cgroup "+g.path, err)
}

// removeTree removes a directory and all below it, the deepest first. A cgroup that has lost its last
// process answers EBUSY for a moment.
func removeTree(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := removeOnce(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func removeOnce(dir string) error {
	err := os.Remove(dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, sub := range children(dir) {
		if err := removeOnce(sub); err != nil {
			return err
		}
	}
	if err = os.Remove(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// List names the paths of the groups that an instance has here, and below the parents that its groups were
// made with, with those that a crash left; sorted.
func (h *Host) List(instance string, parents ...string) ([]string, error) {
	if !plain(instance) {
		return nil, fmt.Errorf("cgroups of %q: %w", instance, berth.ErrInvalid)
	}
	var paths []string
	for t, top := range h.tops(instance, parents) {
		for _, dir := range children(top) {
			if !strings.HasPrefix(path.Base(dir), "_devices-") {
				paths = append(paths, dir[len(t.mount):])
				continue
			}
			for _, sub := range children(dir) {
				paths = append(paths, sub[len(t.mount):])
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// RemoveAll kills what is left in the cgroups of an instance and removes them all, those of a pool, of device
// rules and of OCI runtimes too. Parents are those that its groups were made with. Nothing of any other
// instance is touched.
func (h *Host) RemoveAll(ctx context.Context, instance string, parents ...string) error {
	paths, err := h.List(instance, parents...)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range paths {
		g, err := h.Open(p)
		if errors.Is(err, berth.ErrNotFound) {
			continue
		}
		if err == nil {
			err = errors.Join(g.Kill(ctx), g.Remove(ctx))
		}
		errs = append(errs, err)
	}
	for _, top := range h.tops(instance, parents) {
		for _, dir := range children(top) {
			errs = append(errs, killTasks(ctx, dir), removeTree(ctx, dir))
		}
		errs = append(errs, removeTree(ctx, top))
		// Others may be at work beside us: what is in use stays.
		_ = os.Remove(path.Dir(top))
	}
	h.forget()
	h.mu.Lock()
	for _, p := range parents {
		delete(h.beneath, p)
	}
	h.mu.Unlock()
	return kind("remove cgroups of "+instance, errors.Join(errs...))
}

// tops are the directories in which an instance's groups are.
func (h *Host) tops(instance string, parents []string) iter.Seq2[*tree, string] {
	return func(yield func(*tree, string) bool) {
		for _, t := range append(h.trees(), h.others...) {
			for _, parent := range append([]string{""}, parents...) {
				if !yield(t, t.mount+t.at(parent)+"/"+instance) {
					return
				}
			}
		}
	}
}

// killTasks kills what is in a cgroup of one hierarchy only: a process that was joining when its starter
// was killed.
func killTasks(ctx context.Context, dir string) error {
	g := &Group{path: dir[strings.LastIndexByte(dir, '/'):]}
	g.v1[devices] = dir
	return g.Kill(ctx)
}

// trees are the hierarchies in use, each once.
func (h *Host) trees() []*tree {
	var ts []*tree
	for _, t := range h.v1 {
		if t != nil && !slices.Contains(ts, t) {
			ts = append(ts, t)
		}
	}
	if h.v2 != nil {
		ts = append(ts, h.v2)
	}
	return ts
}
