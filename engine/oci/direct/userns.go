package direct

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

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
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket pair: %w", err)
	}
	p.own(pair[0])
	if err := unix.SetNonblock(pair[1], true); err != nil {
		return err
	}
	p.mapper = os.NewFile(uintptr(pair[1]), "user namespace")
	b := p.b
	b.doing(waitForMapping, "")
	byt := b.alloc(8)
	b.call(unix.SYS_WRITE, p.inherit(pair[0]), address(byt), 1)
	b.call(unix.SYS_READ, arg(pair[0]), address(byt), 1)
	b.check(modeByte, byt, mapped, unix.EPERM)
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

// waitForMapping is the step at which a child fails whose ids could not be mapped.
const waitForMapping = "wait for the mapping of ids"

// mapped is the byte that tells a child that its ids are mapped.
const mapped = 'm'

// mapIDs waits for the child to ask, and maps its ids. The thread that made the child stands still meanwhile.
func (p *plan) mapIDs(pid *int32) error {
	buf := make([]byte, 1)
	if n, err := p.mapper.Read(buf); n == 0 {
		return fmt.Errorf("the child ended: %w", err)
	}
	dir := "/proc/" + strconv.Itoa(int(atomic.LoadInt32(pid)))
	for _, w := range []struct {
		file string
		maps []specs.LinuxIDMapping
	}{{"/uid_map", p.spec.Linux.UIDMappings}, {"/gid_map", p.spec.Linux.GIDMappings}} {
		var text strings.Builder
		for _, m := range w.maps {
			fmt.Fprintln(&text, m.ContainerID, m.HostID, m.Size)
		}
		if err := os.WriteFile(dir+w.file, []byte(text.String()), 0); err != nil {
			return fmt.Errorf("map ids: %w", err)
		}
	}
	if p.oom != "" {
		if err := os.WriteFile(dir+"/oom_score_adj", []byte(p.oom), 0); err != nil {
			return fmt.Errorf("set oom_score_adj: %w", err)
		}
	}
	buf[0] = mapped
	_, err := p.mapper.Write(buf)
	return err
}

// withMapping makes the child of r while another goroutine maps its ids.
func (s *Starter) withMapping(p *plan, r *request) error {
	if p.mapper == nil {
		return s.threadsFor(p).do(r)
	}
	r.args.flags |= unix.CLONE_PARENT_SETTID
	tid := new(int32)
	r.parentTid = tid
	done := make(chan error)
	go func() {
		err := p.mapIDs(tid)
		_ = p.mapper.Close() // a child that waits in vain reads its end
		done <- err
	}()
	err := s.threadsFor(p).do(r)
	p.closeOwned() // the child's end of the pair, so that the goroutine ends in any case
	merr := <-done
	if err != nil {
		return err
	}
	// A step before that failed is for the caller to name.
	refused := r.errno == 0 && r.prog.failed != 0 && p.b.whats[r.prog.failed-1].verb == waitForMapping
	if refused && merr != nil {
		c := newChild(r.pid, int(r.pidfd))
		_, _ = c.wait()
		_ = c.close()
		return fmt.Errorf("user namespace: %w", merr)
	}
	return nil
}

// threadsFor chooses the threads: in a user namespace the kernel mounts proc and sysfs only where they can be
// seen already, and has locked the root.
func (s *Starter) threadsFor(p *plan) *threads {
	switch {
	case p.userNS || s.inUserNS:
		return s.revealed
	case p.admin:
		return s.sealed
	}
	return s.plain
}

// setgroupsDenied reports whether this process's user namespace forbids setgroups(2).
func setgroupsDenied() bool {
	data, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(data)) == "deny"
}

// checkGroups refuses supplementary groups where they cannot be set.
func (s *Starter) checkGroups(u *specs.User) error {
	if s.noSetgroups && len(u.AdditionalGids) > 0 {
		return fmt.Errorf("process.user.additionalGids: %w: this user namespace forbids setgroups; map subordinate ids with newuidmap and newgidmap (package uidmap, /etc/subgid)", berth.ErrUnsupported)
	}
	return nil
}
