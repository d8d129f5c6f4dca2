// Package program is about the programs that hold device rules on cgroup v2: eBPF programs of the type cgroup_device, which
// the kernel asks whether a process may use a device. It loads and attaches them, lists those that hold for a cgroup, reads
// them back, and finds out what they allow.
//
// It does not know what rules a container should have.
package program

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tag is the kernel's digest of a program's instructions.
type Tag [8]byte

// Program is a program in the kernel. It goes with its last user: a Program, or a cgroup to which it is attached.
type Program struct{ fd int }

// Load has the kernel check and take a program.
func Load(code []byte) (*Program, error) {
	if len(code) == 0 {
		return nil, fmt.Errorf("load device rules: %w", unix.EINVAL)
	}
	license := []byte("Apache-2.0\x00") // no function is called that would ask for GPL
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	attr := struct {
		typ, count        uint32
		code, license     uint64
		logLevel, logSize uint32
		log               uint64
	}{
		typ: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / instructionSize),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, fmt.Errorf("load device rules: %w", err)
	}
	return &Program{fd}, nil
}

// ByID opens a program that another has loaded.
func ByID(id uint32) (*Program, error) {
	attr := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	return &Program{fd}, nil
}

// Close ends this use of the program.
func (p *Program) Close() error { return unix.Close(p.fd) }

// Attach has a program hold for a cgroup and all below it, beside those that hold there already where flags has
// BPF_F_ALLOW_MULTI, and with that in the place of one of them if that is not nil.
func (p *Program) Attach(cgroup *os.File, flags uint32, replaced *Program) error {
	attr := struct{ target, program, typ, flags, replace uint32 }{
		target: uint32(cgroup.Fd()), program: uint32(p.fd), typ: unix.BPF_CGROUP_DEVICE, flags: flags,
	}
	if replaced != nil && flags&unix.BPF_F_ALLOW_MULTI != 0 {
		attr.flags, attr.replace = attr.flags|unix.BPF_F_REPLACE, uint32(replaced.fd)
	}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach device rules to %s: %w", cgroup.Name(), err)
	}
	return nil
}

// most is how many programs one cgroup may have, and those above it together.
const most = 64

// Attached lists the programs of a cgroup itself, by their ids, and with which flags they are attached.
func Attached(cgroup *os.File) (ids []uint32, flags uint32, err error) { return query(cgroup, 0) }

// Effective lists the programs that hold for a cgroup: its own, and those of the cgroups above. All of them must allow what
// a process does.
func Effective(cgroup *os.File) (ids []uint32, err error) {
	ids, _, err = query(cgroup, unix.BPF_F_QUERY_EFFECTIVE)
	return ids, err
}

func query(cgroup *os.File, flags uint32) (ids []uint32, attached uint32, err error) {
	ids = make([]uint32, most)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids[0])
	attr := struct {
		target, typ, flags, attached uint32
		ids                          uint64
		count, _                     uint32
	}{target: uint32(cgroup.Fd()), typ: unix.BPF_CGROUP_DEVICE, flags: flags, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: most}
	if _, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return nil, 0, fmt.Errorf("device rules of %s: %w", cgroup.Name(), err)
	}
	return ids[:min(attr.count, most)], attr.attached, nil
}

// info is the beginning of the kernel's struct bpf_prog_info.
type info struct {
	typ, id         uint32
	tag             Tag
	jitedLen, xlLen uint32
	jited, xl       uint64
}

// Tag is the program's tag.
func (p *Program) Tag() (Tag, error) {
	var i info
	err := p.info(&i)
	return i.tag, err
}

// Code reads a program back, as the kernel runs it.
func (p *Program) Code() ([]byte, error) {
	var size info
	if err := p.info(&size); err != nil {
		return nil, err
	}
	if size.xlLen == 0 {
		return nil, errHidden
	}
	code := make([]byte, size.xlLen)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&code[0])
	read := info{xlLen: size.xlLen, xl: uint64(uintptr(unsafe.Pointer(&code[0])))}
	if err := p.info(&read); err != nil {
		return nil, err
	}
	if read.xl == 0 {
		return nil, errHidden
	}
	return code, nil
}

var errHidden = errors.New("the kernel does not show the program")

func (p *Program) info(i *info) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(i)
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(p.fd), uint32(unsafe.Sizeof(*i)), uint64(uintptr(unsafe.Pointer(i)))}
	_, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// bpf is bpf(2). The verifier gives up with EAGAIN when a signal arrives, and Go's runtime sends itself signals.
func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for try := 0; ; try++ {
		r, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
		switch {
		case errno == 0:
			return int(r), nil
		case try < 100 && (errors.Is(errno, unix.EAGAIN) || errors.Is(errno, unix.EINTR)):
		default:
			return -1, os.NewSyscallError("bpf", errno)
		}
	}
}

// maxLists is how often programs are listed anew, because one of the list was replaced before it was read.
const maxLists = 16

// Each reads the programs of a list, which is made anew where one of them is gone: it was replaced meanwhile.
func Each[T any](list func() ([]uint32, error), read func(id uint32) (T, error)) (all []T, err error) {
	for range maxLists {
		if all, err = each(list, read); !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return all, err
}

func each[T any](list func() ([]uint32, error), read func(id uint32) (T, error)) (all []T, err error) {
	ids, err := list()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		v, err := read(id)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}
