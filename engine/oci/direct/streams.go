package direct

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// streamsFirst makes a pipe belong to the container's user, so that it can be opened again as /dev/stderr.
func (p *plan) streamsFirst() error {
	for _, f := range []*os.File{p.bundle.Stdin, p.bundle.Stdout, p.bundle.Stderr} {
		if f == nil {
			continue
		}
		// A command expects to be made to wait; a stream that this program polls may be set otherwise.
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			return fmt.Errorf("set up stream %s: %w", f.Name(), err)
		}
		if err := giveAway(int(f.Fd()), p.hostUID(p.spec.Process.User.UID)); err != nil {
			return fmt.Errorf("give %s to the container's user: %w", f.Name(), err)
		}
	}
	return nil
}

// giveAway changes the owner of a pipe or socket; what else a stream may be is the caller's own.
func giveAway(fd int, uid uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if t := st.Mode & unix.S_IFMT; st.Uid == uid || t != unix.S_IFIFO && t != unix.S_IFSOCK {
		return nil
	}
	// A pipe of somebody else's cannot be given away without privilege; it serves all the same, but cannot be
	// opened again by name.
	if err := unix.Fchown(fd, int(uid), -1); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// streams adds the steps that give the command its descriptors, and close all others.
func (p *plan) streams() error {
	b := p.b
	// First out of the way, for a stream may be one of the numbers that are about to be taken.
	var from [3]arg
	for i, f := range []*os.File{p.bundle.Stdin, p.bundle.Stdout, p.bundle.Stderr} {
		b.doing("open stream", [3]string{"stdin", "stdout", "stderr"}[i])
		switch {
		case p.tty != 0:
			from[i] = p.tty
		case i == 0 && p.bundle.ReplaceStdin != "":
			// By now the root is the container's, and links lead nowhere else.
			// A pipe without a writer must not stop the start, but the command.
			h := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
			b.doing("open as stdin", p.bundle.ReplaceStdin)
			from[i] = b.open(unix.SYS_OPENAT2, p.root, b.str(p.bundle.ReplaceStdin), obj(b, h), unix.SizeofOpenHow)
			b.call(unix.SYS_FCNTL, from[i], unix.F_SETFL, 0)
		case f == nil:
			// The container's null device, not the host's: its owner and mode can be changed by descriptor.
			from[i] = p.openBelow(p.root, "dev/null", unix.O_RDWR)
		default:
			from[i] = p.inherit(int(f.Fd()))
			if f.Fd() > 2 {
				continue
			}
		}
		from[i] = p.high(from[i])
	}
	b.doing("move report pipe", "")
	report, image := p.high(p.inherit(p.report)), p.high(p.inherit(p.image))
	for i := range from {
		b.doing("place stream", [3]string{"stdin", "stdout", "stderr"}[i])
		b.call(unix.SYS_DUP3, from[i], arg(i), 0)
	}
	p.placeImage(report, image)
	// What stays is closed by the command's execve.
	b.doing("close descriptors", "")
	keep := []int{int(p.inherit(p.s.self))}
	if apparmor(p.spec.Process) != "" { // person writes it
		keep = append(keep, int(p.inherit(p.s.proc)))
		slices.Sort(keep)
	}
	b.closeAllBut(imageFD+1, keep)
	return nil
}

// hostUID is what a user of the container is on this host, as this process sees it.
func (p *plan) hostUID(uid uint32) uint32 { return mapID(p.spec.Linux.UIDMappings, uid, p.userNS) }

func (p *plan) hostGID(gid uint32) uint32 { return mapID(p.spec.Linux.GIDMappings, gid, p.userNS) }
