package direct

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// mapID is the id outside a user namespace of an id in it; one that is not mapped stays.
func mapID(maps []specs.LinuxIDMapping, id uint32, userNS bool) uint32 {
	if !userNS {
		return id
	}
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID)
		}
	}
	return id
}

// userNamespace adds the steps of a child in a new user namespace: it waits until its ids are mapped, before
// it does anything else, and becomes root of it.
func (p *plan) userNamespace() error {
	if !p.userNS {
		return nil
	}
	if err := p.meet("wait for the mapping of ids", nil, p.mapIDs); err != nil {
		return err
	}
	b := p.b
	if !p.s.noSetgroups {
		b.doing("clear supplementary groups", "")
		b.call(unix.SYS_SETGROUPS, 0, 0)
	}
	b.doing("become root of the user namespace", "")
	b.call(unix.SYS_SETRESGID, 0, 0, 0)
	b.call(unix.SYS_SETRESUID, 0, 0, 0)
	b.call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	b.call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, arg(unix.SIGKILL), 0, 0, 0)
	return nil
}

// mapIDs maps the ids of a child.
func (p *plan) mapIDs(pid int) error {
	dir := "/proc/" + strconv.Itoa(pid)
	for _, w := range []struct {
		file string
		maps []specs.LinuxIDMapping
	}{{"/uid_map", p.spec.Linux.UIDMappings}, {"/gid_map", p.spec.Linux.GIDMappings}} {
		var text strings.Builder
		for _, m := range w.maps {
			fmt.Fprintln(&text, m.ContainerID, m.HostID, m.Size)
		}
		if err := os.WriteFile(dir+w.file, []byte(text.String()), 0); err != nil {
			return fmt.Errorf("user namespace: map ids: %w", err)
		}
	}
	if p.oom != "" {
		if err := os.WriteFile(dir+"/oom_score_adj", []byte(p.oom), 0); err != nil {
			return fmt.Errorf("user namespace: set oom_score_adj: %w", err)
		}
	}
	return nil
}

// threadsFor chooses the threads: in a user namespace the kernel mounts proc and sysfs only where they can be
// seen already, and has locked the root.
func (s *Starter) threadsFor(p *plan) *threads {
	switch {
	case p.hosted:
		return s.hosted
	case p.userNS || s.inUserNS:
		return s.revealed
	case p.admin:
		return s.sealed
	case p.usual:
		return s.usual
	}
	return s.plain
}

// checkGroups refuses supplementary groups where they cannot be set.
func (s *Starter) checkGroups(u *specs.User) error {
	if s.noSetgroups && len(u.AdditionalGids) > 0 {
		return fmt.Errorf("process.user.additionalGids: %w: this user namespace forbids setgroups; map subordinate ids with newuidmap and newgidmap (package uidmap, /etc/subgid)", berth.ErrUnsupported)
	}
	return nil
}
