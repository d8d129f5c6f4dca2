package direct

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// devptsMagic is the type of a devpts file system in statfs(2).
const devptsMagic = 0x1cd1

// terminal adds the steps that open a terminal in the container's own devpts, and send its master to berth. The
// other side comes from the master by ioctl, not by name. root is the container's root.
func (p *plan) terminal(root arg, proc *specs.Process) error {
	if !proc.Terminal {
		return nil
	}
	// One end for the child, one for us; a message carries the descriptor.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket pair: %w", err)
	}
	p.own(pair[0])
	p.own(pair[1])
	p.consoleSock = pair[1]
	b := p.b
	b.doing("open terminal", "/dev/pts/ptmx")
	m := p.openBelow(root, "dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY)
	st := b.alloc(statfsSize)
	b.call(unix.SYS_FSTATFS, m, address(st))
	b.check(modeWord, st, devptsMagic, unix.EXDEV)
	b.doing("unlock", "terminal")
	b.call(unix.SYS_IOCTL, m, unix.TIOCSPTLCK, obj(b, int32(0)))
	b.doing("open", "terminal")
	p.tty = b.open(unix.SYS_IOCTL, m, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if uid := proc.User.UID; uid != 0 {
		b.doing("give to the user", "terminal")
		b.call(unix.SYS_FCHOWN, p.tty, arg(uid), minusOne)
	}
	if size := proc.ConsoleSize; size != nil {
		b.doing("set size of", "terminal")
		b.call(unix.SYS_IOCTL, m, unix.TIOCSWINSZ, obj(b, unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)}))
	}
	b.doing("send to berth", "terminal")
	p.sendFD(p.inherit(pair[0]), m)
	return nil
}

// sendFD adds the step that sends a descriptor, which the child knows only when it runs, over a socket.
func (p *plan) sendFD(sock, fd arg) {
	b := p.b
	control := b.alloc(unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(control)))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(4))
	b.add(modeStore, 0, fd).mem = unsafe.Pointer(&control[unix.CmsgLen(0)])
	data := b.alloc(8)
	iov := unix.Iovec{Base: unsafe.SliceData(data)}
	iov.SetLen(1)
	at := b.alloc(int(unsafe.Sizeof(iov)))
	*(*unix.Iovec)(unsafe.Pointer(unsafe.SliceData(at))) = iov
	msg := unix.Msghdr{Iov: (*unix.Iovec)(unsafe.Pointer(unsafe.SliceData(at))), Control: unsafe.SliceData(control)}
	msg.SetIovlen(1)
	msg.SetControllen(len(control))
	b.call(unix.SYS_SENDMSG, sock, obj(b, msg), unix.MSG_NOSIGNAL)
}

// consoleMount mounts the terminal at /dev/console as well.
func (p *plan) consoleMount() error {
	if p.tty == 0 {
		return nil
	}
	at, _, err := p.view.target("/dev/console", false)
	if err != nil {
		return err
	}
	b := p.b
	b.doing("clone", "terminal")
	m := b.open(unix.SYS_OPEN_TREE, p.tty, b.str(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	p.attach(m, at)
	return nil
}

// control makes the terminal, which is standard input by now, that of the child's session.
func (p *plan) control() {
	if p.tty == 0 {
		return
	}
	p.b.doing("make the session's", "terminal")
	p.b.call(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
}

// console takes the master that the child has sent; nil where there is no terminal.
func (p *plan) console() (*os.File, error) {
	if p.tty == 0 {
		return nil, nil
	}
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(p.consoleSock, make([]byte, 8), control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errors.Join(errors.New("receive terminal: no descriptor came"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("receive terminal: no descriptor came"), err)
	}
	if err := syscall.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "console"), nil
}
