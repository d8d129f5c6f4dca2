package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/device/cdi/program"
)

// daemonRules are what daemons and their runtimes allow every container on cgroup v1: /dev/console, and /dev/net/tun
// with runc before 1.2.
var daemonRules = []berth.Node{{Type: "c", Major: 5, Minor: 1}, {Type: "c", Major: 10, Minor: 200}}

// prove compares a container that was started a moment ago with what it was lent. An error says in what they differ.
// Why they could not be compared, as for one that ended first, is recorded.
func (la *launch) prove(ctx context.Context) error {
	if la.lent == nil {
		return nil
	}
	err := la.compare(ctx)
	if err == nil || errors.Is(err, grant.ErrDiffers) {
		return err
	}
	la.l.mu.Lock()
	defer la.l.mu.Unlock()
	la.l.rec.Unverified = "whether it held what it was lent was not seen: " + err.Error()
	if err := writeJSON(filepath.Join(la.l.dir, recordFile), la.l.rec); err != nil {
		return fmt.Errorf("%w: %w", kindOf(err), err)
	}
	return nil
}

func (la *launch) compare(ctx context.Context) error {
	c, err := la.l.inspect(ctx, la.l.docker())
	if err != nil {
		return err
	}
	if isOver(c.State) || c.State.Pid <= 0 {
		return errors.New("it had ended before")
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", c.State.Pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	if !inCgroupOf(c.State.Pid, c.ID) {
		return errors.New("its process is not to be seen from here")
	}
	if err = la.compareAt(ctx, c.State.Pid, root); errors.Is(err, grant.ErrDiffers) && (endsWithin(c.State.Pid, endingTime) || !inCgroupOf(c.State.Pid, c.ID)) {
		// It ended meanwhile: its file systems were taken apart, and its process counts among the host's.
		return errors.New("it ended meanwhile")
	}
	return err
}

// endingTime is how long a process may take from losing its file systems to its end.
const endingTime = 100 * time.Millisecond

// endsWithin reports whether a process has ended, or ends soon, whether or not its parent has taken notice.
func endsWithin(pid int, limit time.Duration) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer func() { _ = unix.Close(fd) }()
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(end), 0)/time.Millisecond))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// compareAt compares what the process pid, with the root directory root, holds with what was lent.
func (la *launch) compareAt(ctx context.Context, pid int, root *os.File) error {
	host, err := la.s.e.daemon(ctx)
	if err != nil {
		return err
	}
	// It runs by now, and may have made nodes itself; without a rule for them they are of no use to it. An ordinary user's can
	// make none, and has no rules.
	held := grant.Container{Root: root, Optional: la.lent.optional, Bound: !host.rootless, Kin: true}
	if held.Others, err = nodesOf(la.spec.Devices); err != nil {
		return err
	}
	if err := la.lent.set.ProveNodes(held); err != nil || host.rootless {
		return err
	}
	rules, err := grant.RulesOf(pid)
	if errors.Is(err, grant.ErrNoRules) { // v2
		codes, err := grant.ProgramsOf(pid)
		if err != nil {
			return fmt.Errorf("its device rules: %w", err)
		}
		return la.lent.provePrograms(codes, held.Others)
	}
	if err != nil {
		return err
	}
	return la.lent.proveRules(rules, held.Others)
}

// parts are the nodes that a container must have, and those that it may.
func (l *lending) parts() (must, may []berth.Node) {
	for _, n := range l.set.Nodes {
		if l.optional != nil && l.optional(cmp.Or(n.Container, n.Host)) {
			may = append(may, n)
		} else {
			must = append(must, n)
		}
	}
	return must, may
}

// proveRules compares device rules of cgroup v1 with what was lent, and given beside.
func (l *lending) proveRules(rules []string, given []berth.Node) error {
	must, may := l.parts()
	set := grant.Set{Nodes: must}
	return set.ProveRules(rules, grant.Container{Others: given}, append(may, daemonRules...)...)
}

// provePrograms does so with the programs that hold them on v2.
func (l *lending) provePrograms(codes []program.Code, given []berth.Node) error {
	must, may := l.parts()
	access := func(n berth.Node) (access string) {
		for _, g := range slices.Concat(given, may) {
			if g.Type == n.Type && g.Major == n.Major && g.Minor == n.Minor {
				access += cmp.Or(g.Permissions, "rwm")
			}
		}
		return access
	}
	err := grant.ProvePrograms(codes, must, access, daemonRules...)
	if err == nil || errors.Is(err, grant.ErrDiffers) {
		return err
	}
	return fmt.Errorf("its device rules: %w", err)
}

// nodesOf are the numbers of devices on this host.
func nodesOf(devices []berth.Device) (nodes []berth.Node, err error) {
	for _, d := range devices {
		var st unix.Stat_t
		if err := unix.Stat(d.Host, &st); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Host, err)
		}
		n := berth.Node{Device: d, Type: "c", Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			n.Type = "b"
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}
