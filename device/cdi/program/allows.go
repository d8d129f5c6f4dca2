package program

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Use is a use of a device, as a program is asked about it.
type Use struct {
	Type         uint16 // BPF_DEVCG_DEV_CHAR or BPF_DEVCG_DEV_BLOCK
	Access       uint16 // BPF_DEVCG_ACC_MKNOD, _READ, _WRITE: all of them at once
	Major, Minor uint32
}

// ErrUnknown says that a program does what device rules are not known to do: what it allows cannot be told.
var ErrUnknown = errors.New("the program does more than to compare")

const (
	instructionSize = 8
	// maxSteps bounds a run; the kernel lets no program run for ever either.
	maxSteps = 1 << 16
	// context is the address of what a program is told: struct { u32 access_type; u32 major; u32 minor; }.
	context     = 1 << 40
	contextSize = 12
)

// Code is a program that can be asked what it allows.
type Code []instruction

type instruction struct {
	op, dst, src uint8
	off          int16
	imm          int32
}

// Parse reads a program. What it allows may be ErrUnknown still.
func Parse(code []byte) (Code, error) {
	c := make(Code, 0, len(code)/instructionSize)
	for ; len(code) >= instructionSize; code = code[instructionSize:] {
		in := instruction{
			op: code[0], dst: code[1] & 0xf, src: code[1] >> 4,
			off: int16(binary.NativeEndian.Uint16(code[2:])), imm: int32(binary.NativeEndian.Uint32(code[4:])),
		}
		if in.dst > 10 || in.src > 10 {
			return nil, fmt.Errorf("%w: instruction %d names no register", ErrUnknown, len(c))
		}
		c = append(c, in)
	}
	return c, nil
}

// Allows runs a program as the kernel does, and says whether it allows a use. Programs that call functions, or have memory
// of their own, are ErrUnknown.
func (c Code) Allows(u Use) (bool, error) {
	m := machine{code: c}
	le := binary.NativeEndian
	le.PutUint32(m.context[0:], uint32(u.Access)<<16|uint32(u.Type))
	le.PutUint32(m.context[4:], u.Major)
	le.PutUint32(m.context[8:], u.Minor)
	m.r[1] = context
	for range maxSteps {
		done, err := m.step()
		if err != nil {
			return false, err
		}
		if done {
			return m.r[0]&1 == 1, nil // the kernel looks at the lowest bit alone
		}
	}
	return false, fmt.Errorf("%w: it does not end", ErrUnknown)
}

// machine runs a program.
type machine struct {
	code    Code
	context [contextSize]byte
	r       [11]uint64
	pc      int // of the next instruction
}

// The parts of operation codes, of linux/bpf_common.h and linux/bpf.h.
const (
	ofRegister = unix.BPF_X
	loadImm64  = unix.BPF_LD | unix.BPF_DW | unix.BPF_IMM
	noSpec     = unix.BPF_ST | 0xc0 // a barrier to speculation, which the kernel puts in
)

func (m *machine) step() (done bool, err error) {
	if m.pc < 0 || m.pc >= len(m.code) {
		return false, fmt.Errorf("%w: it leaves itself", ErrUnknown)
	}
	in := &m.code[m.pc]
	op, dst, src, off := in.op, in.dst, in.src, in.off
	m.pc++
	switch class := op & 0x07; {
	case op == loadImm64 && src == 0 && m.pc < len(m.code):
		m.r[dst] = uint64(uint32(in.imm)) | uint64(uint32(m.code[m.pc].imm))<<32
		m.pc++
	case op == noSpec:
	case class == unix.BPF_LDX && op&0xe0 == unix.BPF_MEM:
		if !m.load(op&0x18, dst, m.r[src]+uint64(int64(off))) {
			return m.unknown(op)
		}
	case class == unix.BPF_ALU, class == unix.BPF_ALU64:
		v := uint64(int64(in.imm))
		if op&ofRegister != 0 {
			v = m.r[src]
		}
		if off != 0 || !m.compute(op&0xf0, class == unix.BPF_ALU64, dst, v) {
			return m.unknown(op)
		}
	case op == unix.BPF_JMP|unix.BPF_EXIT:
		return true, nil
	case class == unix.BPF_JMP, class == unix.BPF_JMP32:
		v := uint64(int64(in.imm))
		if op&ofRegister != 0 {
			v = m.r[src]
		}
		jumps, known := compare(op&0xf0, class == unix.BPF_JMP, m.r[dst], v)
		if !known {
			return m.unknown(op)
		}
		if jumps {
			m.pc += int(off)
		}
	default:
		return m.unknown(op)
	}
	return false, nil
}

func (m *machine) unknown(op uint8) (bool, error) {
	return false, fmt.Errorf("%w: instruction %d is %#02x", ErrUnknown, m.pc-1, op)
}

// load reads what the program is told.
func (m *machine) load(size, dst uint8, address uint64) bool {
	at := address - context
	switch {
	case size == unix.BPF_W && at <= contextSize-4:
		m.r[dst] = uint64(binary.NativeEndian.Uint32(m.context[at:]))
	case size == unix.BPF_H && at <= contextSize-2:
		m.r[dst] = uint64(binary.NativeEndian.Uint16(m.context[at:]))
	case size == unix.BPF_B && at < contextSize:
		m.r[dst] = uint64(m.context[at])
	default:
		return false
	}
	return true
}

// compute does arithmetic, in 64 or in 32 bits.
func (m *machine) compute(op uint8, wide bool, dst uint8, v uint64) (known bool) {
	r, bits := m.r[dst], uint64(63)
	if !wide {
		r, v, bits = uint64(uint32(r)), uint64(uint32(v)), 31
	}
	switch op {
	case unix.BPF_MOV:
		r = v
	case unix.BPF_ADD:
		r += v
	case unix.BPF_SUB:
		r -= v
	case unix.BPF_AND:
		r &= v
	case unix.BPF_OR:
		r |= v
	case unix.BPF_XOR:
		r ^= v
	case unix.BPF_LSH:
		r <<= v & bits
	case unix.BPF_RSH:
		r >>= v & bits
	default:
		return false
	}
	if !wide {
		r = uint64(uint32(r))
	}
	m.r[dst] = r
	return true
}

// compare reports whether a jump is taken.
func compare(op uint8, wide bool, a, b uint64) (jumps, known bool) {
	if op == unix.BPF_JA {
		return true, wide
	}
	if !wide {
		a, b = uint64(uint32(a)), uint64(uint32(b))
	}
	switch op {
	case unix.BPF_JEQ:
		return a == b, true
	case unix.BPF_JNE:
		return a != b, true
	case unix.BPF_JGT:
		return a > b, true
	case unix.BPF_JGE:
		return a >= b, true
	case unix.BPF_JLT:
		return a < b, true
	case unix.BPF_JLE:
		return a <= b, true
	case unix.BPF_JSET:
		return a&b != 0, true
	}
	return false, false
}
