package cgroup

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/program"
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
	p, err := program.Load(assemble(s.program()))
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	cgroup, err := openDir(dir)
	if err != nil {
		return err
	}
	defer func() { _ = cgroup.Close() }()
	return p.Attach(cgroup, unix.BPF_F_ALLOW_MULTI, nil)
}

func openDir(dir string) (*os.File, error) {
	fd, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// ruleable reports whether this process may set device rules on v2. It may not in a user namespace; there
// no device can be made either, and only what is bind-mounted can be opened.
func ruleable() bool {
	p, err := program.Load(assemble(rules{}.program()))
	if err != nil {
		return false
	}
	_ = p.Close()
	return true
}
