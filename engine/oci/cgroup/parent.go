package cgroup

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// CheckParent refuses a parent of Spec beneath which this process can make no groups: ErrNotFound where no hierarchy has it,
// ErrDenied where it may not, ErrUnsupported where it can make none at all. "" is none given.
func (h *Host) CheckParent(parent string) error {
	if parent == "" {
		return nil
	}
	trees, there := h.trees(), false
	if len(trees) == 0 && count(h.promised) > 0 {
		return nil // the user's systemd gives them at the start, which says what is wrong with the parent
	}
	if len(trees) == 0 {
		why, remedy := h.why(memory)
		return fmt.Errorf("cgroup parent %s: %w: berth can make no cgroups here: %s; %s", parent, berth.ErrUnsupported, why, remedy)
	}
	for _, t := range trees {
		dir := t.mount + parent
		if !exists(dir) {
			continue
		}
		there = true
		if own := t.mount + t.at(parent); exists(own) {
			dir = own
		}
		if unix.Access(dir, unix.W_OK|unix.X_OK) != nil {
			return fmt.Errorf("cgroup parent %s: %w: this user may make nothing in %s; have it delegated, or run berth as root", parent, berth.ErrDenied, dir)
		}
	}
	if !there {
		return fmt.Errorf("cgroup parent %s: %w: no hierarchy of this host has it; make it first, as with mkdir %s", parent, berth.ErrNotFound, trees[0].mount+parent)
	}
	return nil
}

// enter counts a group that is made beneath a parent: what lies between the two stays until the last such group is gone.
func (h *Host) enter(spec Spec) {
	if spec.Parent == "" {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.beneath[spec.Parent]++; h.beneath[spec.Parent] > 1 {
		return
	}
	for _, t := range append(h.trees(), h.others...) {
		for at := spec.Parent; at != "/" && !exists(t.mount+at); at = path.Dir(at) {
			h.without[spec.Parent] = append(h.without[spec.Parent], t.mount+at)
		}
	}
}

// leave is the reverse of enter. With the last group goes what was made for it beneath the parent, so that its owner can remove
// that; what others use stays.
func (h *Host) leave(spec Spec) {
	if spec.Parent == "" {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.beneath[spec.Parent]--; h.beneath[spec.Parent] > 0 {
		return
	}
	delete(h.beneath, spec.Parent)
	instance, _, _ := strings.Cut(spec.Path, "/")
	for _, t := range append(h.trees(), h.others...) {
		if !exists(t.mount+spec.Parent) || t.at(spec.Parent) == t.base { // there the groups without a parent are, too
			continue
		}
		top := t.mount + t.at(spec.Parent)
		for _, dir := range append(children(path.Join(top, instance)), path.Join(top, instance), top) {
			_ = os.Remove(dir)
		}
	}
	for _, dir := range h.without[spec.Parent] { // where an OCI runtime has made it
		_ = os.Remove(dir)
	}
	delete(h.without, spec.Parent)
	clear(h.parents)
	clear(h.rules)
}
