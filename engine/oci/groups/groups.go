// Package groups says whose groups open device nodes in a user namespace, which has names for few of the host's. A process
// keeps the groups with which it came into the namespace, also those that have no name there, until it sets others.
//
// It changes no node and no process.
package groups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/thread"
)

// Keep is the annotation of an OCI spec that has a container's processes keep the supplementary groups of the process that
// makes it. It is crun's.
const Keep = "run.oci.keep_original_groups"

// Fixed reports whether this user namespace lets nobody set groups: all processes have those of who made it.
func Fixed() bool {
	raw, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(raw)) == "deny"
}

// Person is who would open a node, with ids of this process's user namespace.
type Person struct {
	UID, GID uint32
	// Groups are its supplementary groups; with Keep it has this process's.
	Groups []uint32
	Keep   bool
}

// overflowID is what an id is shown as that a user namespace does not have.
const overflowID = 65534

// Of returns the groups that open nodes which are not everybody's, with the ids of this process's user namespace. Those that it does not
// have are left out, and so is 0: that is the group of who made the namespace, and of all that is the image's.
func Of(nodes []string) (gids []uint32, err error) {
	for _, name := range nodes {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
		}
		if wants(st.Mode) != 0 && st.Mode&0o060 != 0 && st.Gid != 0 && st.Gid != overflowID && !slices.Contains(gids, st.Gid) {
			gids = append(gids, st.Gid)
		}
	}
	return gids, nil
}

// Closed returns the first of the nodes that a person cannot open as somebody of their owner or group could; "" if there is none.
// ErrDenied: nobody in this process's place can. Nodes that everybody opens like that are not looked at further, and cost a stat each.
func (p Person) Closed(nodes []string) (node string, err error) { return p.closed(nodes, access, open) }

// closed looks in several ways: the next is for what the kernel, or a seccomp profile, does not have one of them do.
func (p Person) closed(nodes []string, ways ...func(wanted) error) (node string, err error) {
	var private []wanted
	for _, name := range nodes {
		// The way to it is this process's: the container has another.
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return name, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		defer func() { _ = unix.Close(fd) }()
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return name, &fs.PathError{Op: "stat", Path: name, Err: err}
		}
		if bits := wants(st.Mode); bits != 0 {
			private = append(private, wanted{name, fd, bits})
		}
	}
	if len(private) == 0 {
		return "", nil
	}
	changing.Lock()
	defer changing.Unlock()
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return "", err
	}
	err = thread.Own(func() (err error) { // it becomes another user's
		node, err = p.try(private, ways)
		return err
	})
	// A thread that changes its user has the kernel take that of the process away.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable), 0, 0, 0); err != nil && dumpable < 2 {
		return "", err
	}
	return node, err
}

// changing is held while a thread is another user's.
var changing sync.Mutex

// wanted is a node and what it is to be opened for.
type wanted struct {
	name string
	fd   int
	bits uint32 // R_OK, W_OK
}

// wants is what a node's group may do with it, or where that is nothing its owner, and others may not.
func wants(mode uint32) uint32 {
	const rw = 6
	for _, shift := range []uint{3, 6} {
		if bits := mode >> shift & rw; bits != 0 {
			if mode&bits == bits {
				return 0
			}
			return bits
		}
	}
	return 0
}

// try makes this thread the person, and looks.
func (p Person) try(nodes []wanted, ways []func(wanted) error) (string, error) {
	if !p.Keep {
		if err := setgroups(p.Groups); err != nil {
			return "", fmt.Errorf("set groups %v: %w", p.Groups, err)
		}
	}
	for _, call := range []struct{ number, id uintptr }{{unix.SYS_SETFSGID, uintptr(p.GID)}, {unix.SYS_SETFSUID, uintptr(p.UID)}} {
		_, _, _ = unix.RawSyscall(call.number, call.id, 0, 0) // it answers the old one, and nothing of errors
		if now, _, _ := unix.RawSyscall(call.number, ^uintptr(0), 0, 0); uint32(now) != uint32(call.id) {
			return "", fmt.Errorf("become user %d of group %d: %w", p.UID, p.GID, unix.EPERM)
		}
	}
	for _, n := range nodes {
		var err error
		for _, look := range ways {
			if err = look(n); !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
				break
			}
		}
		switch {
		case errors.Is(err, unix.EACCES):
			return n.name, nil
		case errors.Is(err, unix.EPERM):
			return n.name, fmt.Errorf("%w: %s opens for nobody here, whatever its group: device rules of this process's cgroup, or the like, forbid it: %w", berth.ErrDenied, n.name, err)
		case err != nil:
			return n.name, &fs.PathError{Op: "look at", Path: n.name, Err: err}
		}
	}
	return "", nil
}

// access asks the kernel, from Linux 5.8 on.
func access(n wanted) error {
	return unix.Faccessat2(n.fd, "", n.bits, unix.AT_EACCESS|unix.AT_EMPTY_PATH)
}

// open opens a node. What a driver says against it is no matter of rights.
func open(n wanted) error {
	flags := map[uint32]int{unix.R_OK: unix.O_RDONLY, unix.W_OK: unix.O_WRONLY, unix.R_OK | unix.W_OK: unix.O_RDWR}[n.bits]
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", n.fd), flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		_ = unix.Close(fd)
	case !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM):
		return nil
	}
	return err
}
