package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// instruction is one of eBPF: struct bpf_insn.
type instruction struct {
	op       uint8
	dst, src uint8
	off      int16
	imm      int32
}

// Operation codes, of linux/bpf_common.h and linux/bpf.h.
const (
	loadWord = unix.BPF_LDX | unix.BPF_W | unix.BPF_MEM
	movReg   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	movImm   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	andImm   = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	shiftImm = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	jumpNE   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	exit     = unix.BPF_JMP | unix.BPF_EXIT
)

// program is the rules as a program of type BPF_PROG_TYPE_CGROUP_DEVICE. Its context is
// struct { u32 access_type; u32 major; u32 minor; }, with the access in the upper half of the first.
func (s rules) program() []instruction {
	const typ, acc, major, minor, scratch = 2, 3, 4, 5, 1
	p := []instruction{
		{op: loadWord, dst: typ, src: 1, off: 0},
		{op: movReg, dst: acc, src: typ},
		{op: andImm, dst: typ, imm: 0xffff},
		{op: shiftImm, dst: acc, imm: 16},
		{op: loadWord, dst: major, src: 1, off: 4},
		{op: loadWord, dst: minor, src: 1, off: 8},
	}
	for _, r := range s.list {
		var match []instruction // each jump goes to the next rule
		switch r.typ {
		case 'b':
			match = append(match, instruction{op: jumpNE, dst: typ, imm: unix.BPF_DEVCG_DEV_BLOCK})
		case 'c':
			match = append(match, instruction{op: jumpNE, dst: typ, imm: unix.BPF_DEVCG_DEV_CHAR})
		}
		if r.access != anyAccess {
			match = append(match,
				instruction{op: movReg, dst: scratch, src: acc},
				instruction{op: andImm, dst: scratch, imm: int32(anyAccess &^ r.access)},
				instruction{op: jumpNE, dst: scratch, imm: 0})
		}
		if r.major >= 0 {
			match = append(match, instruction{op: jumpNE, dst: major, imm: int32(r.major)})
		}
		if r.minor >= 0 {
			match = append(match, instruction{op: jumpNE, dst: minor, imm: int32(r.minor)})
		}
		match = append(match, instruction{op: movImm, dst: 0, imm: 1}, instruction{op: exit})
		for i := range match {
			if match[i].op == jumpNE {
				match[i].off = int16(len(match) - 1 - i)
			}
		}
		p = append(p, match...)
	}
	return append(p, instruction{op: movImm, dst: 0, imm: 0}, instruction{op: exit})
}

func assemble(p []instruction) []byte {
	b := make([]byte, 0, 8*len(p))
	for _, in := range p {
		b = append(b, in.op, in.dst|in.src<<4)
		b = binary.NativeEndian.AppendUint16(b, uint16(in.off))
		b = binary.NativeEndian.AppendUint32(b, uint32(in.imm))
	}
	return b
}

// applyV2 attaches the rules to a v2 cgroup; they hold for all below it. Programs that are attached further
// up go on to hold too.
func (s rules) applyV2(dir string) error {
	prog, err := load(s.program())
	if err != nil {
		return fmt.Errorf("load device rules: %w", err)
	}
	defer func() { _ = unix.Close(prog) }()
	cgroup, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(cgroup) }()
	attr := struct{ target, prog, typ, flags uint32 }{
		uint32(cgroup), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI,
	}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach device rules to %s: %w", dir, err)
	}
	return nil
}

func load(p []instruction) (fd int, err error) {
	code := assemble(p)
	license := []byte("Apache-2.0\x00") // the rules call no function that would ask for GPL
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
		typ: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(p)),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	return bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// bpf is bpf(2). The verifier gives up with EAGAIN when a signal arrives, and Go's runtime sends itself
// signals.
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

// ruleable reports whether this process may set device rules on v2. It may not in a user namespace; there
// no device can be made either, and only what is bind-mounted can be opened.
func ruleable() bool {
	fd, err := load(rules{}.program())
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}
