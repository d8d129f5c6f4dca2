package ociruntime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/inroot"
)

// container is one that a runtime has made, whose command does not run yet.
type container struct {
	state oci.State
	raw   []byte // the state as it came
	spec  []byte // the bundle's configuration
}

// readContainer reads the state that a runtime gives a hook, and the bundle's configuration.
func readContainer(stdin io.Reader) (*container, error) {
	const what = "the container's OCI state on standard input"
	raw, err := io.ReadAll(io.LimitReader(stdin, maxSpec))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	c := &container{raw: raw}
	if err := json.Unmarshal(raw, &c.state); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, berth.ErrInvalid, err)
	}
	if c.state.ID == "" || c.state.Pid <= 0 || !filepath.IsAbs(c.state.Bundle) {
		return nil, fmt.Errorf("%s: %w: id %q, pid %d, bundle %q", what, berth.ErrInvalid, c.state.ID, c.state.Pid, c.state.Bundle)
	}
	c.spec, err = readFile(filepath.Join(c.state.Bundle, "config.json"))
	return c, err
}

// root opens the container's root directory, as its first process sees it: what the runtime has made of it, whether
// or not that process has it for its own root yet. It is never the host's. before reports that the process, and with it
// the container's mount namespace, has the host's root still.
func (c *container) root() (root *inroot.Root, before bool, err error) {
	var spec struct {
		Root oci.Root `json:"root"`
	}
	if err := json.Unmarshal(c.spec, &spec); err != nil {
		return nil, false, fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	}
	top := fmt.Sprintf("/proc/%d/root", c.state.Pid)
	before, err = sameDir(top, "/")
	if err != nil {
		return nil, false, fmt.Errorf("the container's root: %w", err)
	}
	dir := top
	if before { // it has not changed its root yet
		dir = spec.Root.Path
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(c.state.Bundle, dir)
		}
		dir = top + filepath.Clean("/"+dir)
	}
	if host, err := sameDir(dir, "/"); err != nil || host {
		return nil, false, errors.Join(err, fmt.Errorf("the container's root %s: %w: it is that of the host", dir, berth.ErrInvalid))
	}
	root, err = inroot.Open(dir)
	if err != nil {
		return nil, false, fmt.Errorf("the container's root: %w", err)
	}
	return root, before, nil
}

// lentLease is the lease that the runtime's hook in the configuration names; "" where there is none.
func (c *container) lentLease() (string, error) {
	var spec struct {
		Hooks oci.Hooks `json:"hooks"`
	}
	if err := json.Unmarshal(c.spec, &spec); err != nil {
		return "", fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	}
	for _, h := range spec.Hooks.CreateRuntime {
		if len(h.Args) >= 5 && h.Args[1] == "oci-hook" && h.Args[2] == lentName && h.Args[3] == leaseFlag {
			return h.Args[4], nil
		}
	}
	return "", nil
}

// sameDir reports whether two paths are the same directory.
func sameDir(a, b string) (bool, error) {
	var x, y unix.Stat_t
	if err := unix.Stat(a, &x); err != nil {
		return false, &os.PathError{Op: "stat", Path: a, Err: err}
	}
	if err := unix.Stat(b, &y); err != nil {
		return false, &os.PathError{Op: "stat", Path: b, Err: err}
	}
	return x.Dev == y.Dev && x.Ino == y.Ino, nil
}

// userNamespace reports whether the container has one of its own: device nodes that are made there cannot be opened.
func (c *container) userNamespace() (bool, error) {
	same, err := sameDir(fmt.Sprintf("/proc/%d/ns/user", c.state.Pid), "/proc/self/ns/user")
	return !same, err
}
