package direct

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
)

// prepared is what is known of a mount of a spec before it is made; of a bind mount, its source's mount, cloned and
// detached, with its attributes.
type prepared struct {
	options mountOptions
	fd      int // -1 where there is none
	st      unix.Stat_t
	err     error
}

// prepareMount makes one here, where the host's paths are.
func prepareMount(m *specs.Mount) *prepared {
	c := &prepared{fd: -1}
	if c.options, c.err = parseMount(m); c.err != nil || !c.options.bind {
		return c
	}
	if c.err = c.open(m); c.err != nil {
		c.err = fmt.Errorf("source %s: %w", m.Source, c.err)
	}
	return c
}

func (c *prepared) open(m *specs.Mount) (err error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if c.options.rbind {
		flags |= unix.AT_RECURSIVE
	}
	c.fd, err = unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if err != nil {
		c.fd = -1
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%w: %w", berth.ErrNotFound, err)
		}
		return err
	}
	if err := unix.Fstat(c.fd, &c.st); err != nil {
		return err
	}
	if err := setAttrs(c.fd, c.st.Mode&unix.S_IFMT == unix.S_IFDIR, &c.options); err != nil {
		return fmt.Errorf("options %s: %w", strings.Join(m.Options, ","), err)
	}
	return nil
}

// early are the clones for mounts, made while the root is mounted: by another thread where they are many, while this one finds
// their places, too.
type early struct {
	clones chan *prepared // in the order of the mounts; closed behind the last
}

// manyBinds is from how many bind mounts on another thread is worth its price.
const manyBinds = 8

// cloneEarly makes the clones for a bundle's mounts, or begins to; nil where they are few and nobody else mounts the root
// meanwhile. Close it.
func cloneEarly(b *bundle.Bundle) *early {
	mounts, binds := b.Spec.Mounts, 0
	for _, m := range mounts {
		if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			binds++
		}
	}
	if binds < manyBinds && b.Mount == nil {
		return nil
	}
	e := &early{clones: make(chan *prepared, len(mounts))}
	clone := func() {
		defer close(e.clones)
		for i := range mounts {
			e.clones <- prepareMount(&mounts[i])
		}
	}
	if binds < manyBinds {
		clone()
	} else {
		go clone()
	}
	return e
}

// take hands over the clone of the next mount of the spec; nil where there is none.
func (e *early) take() *prepared {
	if e == nil {
		return nil
	}
	return <-e.clones
}

func (e *early) close() {
	if e == nil {
		return
	}
	for c := range e.clones {
		if c.fd >= 0 {
			_ = unix.Close(c.fd)
		}
	}
}
