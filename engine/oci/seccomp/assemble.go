package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; the machines are little-endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16 // of 8 bytes each
)

// jumpMax is how far a conditional jump reaches.
const jumpMax = 255

// assembler builds a program from its end to its beginning: the target of each jump stands already, and so
// its distance is known.
type assembler struct {
	reversed []unix.SockFilter
	returns  map[uint32]label
}

// label is an instruction, counted from the end of the program.
type label int

// program writes: by architecture, then by number, through a binary tree of the ranges or a table, then by arguments.
func (a *assembler) program(p *plan) {
	next := a.ret(retBadArch)
	for _, s := range slices.Backward(p.sections) {
		next = a.jump(unix.BPF_JEQ, s.audit, a.section(s), next)
	}
	a.load(offArch, next)
}

// section writes the decisions for one architecture.
func (a *assembler) section(s planned) label {
	foreign := 0 // the first span that is none of the machine's own
	if s.own {
		foreign = slices.IndexFunc(s.ranges, func(r span) bool { return r.first >= x32Bit })
	}
	if foreign < 0 {
		return a.load(offNumber, a.tree(s.ranges))
	}
	if _, ok := bitsOf(s.ranges[foreign:]); !ok {
		return a.load(offNumber, a.tree(s.ranges))
	}
	next := a.tabled(s.ranges[foreign:])
	if foreign > 0 {
		own := a.tree(s.ranges[:foreign])
		next = a.jump(unix.BPF_JGE, s.ranges[foreign].first, next, own)
	}
	return a.load(offNumber, next)
}

func (a *assembler) tree(spans []span) label {
	if len(spans) == 1 {
		return a.verdict(spans[0].verdict)
	}
	half := len(spans) / 2
	high := a.tree(spans[half:])
	low := a.tree(spans[:half])
	return a.jump(unix.BPF_JGE, spans[half].first, high, low)
}

func (a *assembler) verdict(v verdict) label {
	if v.rules == nil {
		return a.ret(v.answer)
	}
	next := a.ret(v.answer)
	for _, r := range slices.Backward(*v.rules) {
		match := a.ret(r.answer)
		otherwise := next
		for _, c := range slices.Backward(r.conditions) {
			match = a.condition(c, v.narrow, match, otherwise)
		}
		next = match
	}
	return next
}

// condition writes a comparison of 64 bits as one of the high and one of the low half.
func (a *assembler) condition(c condition, narrow bool, match, otherwise label) label {
	op := uint16(unix.BPF_JEQ)
	yes, no := match, otherwise
	switch c.op {
	case specs.OpNotEqual:
		yes, no = no, yes
	case specs.OpGreaterThan:
		op = unix.BPF_JGT
	case specs.OpGreaterEqual:
		op = unix.BPF_JGE
	case specs.OpLessThan:
		op, yes, no = unix.BPF_JGE, no, yes
	case specs.OpLessEqual:
		op, yes, no = unix.BPF_JGT, no, yes
	case specs.OpEqualTo, specs.OpMaskedEqual:
	}
	at := uint32(offArgs + 8*c.arg)
	here := label(-1)
	if uint32(c.mask) != 0 {
		here = a.compare(at, op, uint32(c.mask), uint32(c.value), yes, no)
	}
	if narrow || c.mask>>32 == 0 {
		return here
	}
	hi := uint32(c.value >> 32)
	switch {
	case here < 0: // the mask is of the high half only
		return a.compare(at+4, op, uint32(c.mask>>32), hi, yes, no)
	case op == unix.BPF_JEQ:
		return a.compare(at+4, op, uint32(c.mask>>32), hi, here, no)
	}
	return a.load(at+4, a.jump(unix.BPF_JGT, hi, yes, a.jump(unix.BPF_JEQ, hi, here, no)))
}

func (a *assembler) compare(at uint32, op uint16, mask, value uint32, yes, no label) label {
	l := a.jump(op, value, yes, no)
	if mask != ^uint32(0) {
		l = a.emit(unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	}
	return a.load(at, l)
}

// ret returns an instruction that answers: one that is there, or where it may be too far away, a new one.
func (a *assembler) ret(answer uint32) label {
	if l, ok := a.returns[answer]; ok && len(a.reversed)-int(l) < jumpMax/2 {
		return l
	}
	if a.returns == nil {
		a.returns = map[uint32]label{}
	}
	a.returns[answer] = a.emit(unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: answer})
	return a.returns[answer]
}

// load writes an instruction that reads a word of the call and goes on at next.
func (a *assembler) load(offset uint32, next label) label {
	if int(next) != len(a.reversed)-1 {
		a.far(next)
	}
	return a.emit(unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
}

// jump writes a conditional jump. What is too far for it is reached by a jump beside it that has no limit.
func (a *assembler) jump(op uint16, value uint32, yes, no label) label {
	if yes == no {
		return yes
	}
	for a.distance(yes) > jumpMax || a.distance(no) > jumpMax {
		if a.distance(yes) > jumpMax {
			yes = a.far(yes)
		}
		if a.distance(no) > jumpMax {
			no = a.far(no)
		}
	}
	return a.emit(unix.SockFilter{
		Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(a.distance(yes)), Jf: uint8(a.distance(no)), K: value,
	})
}

// far writes a jump of any distance.
func (a *assembler) far(to label) label {
	return a.emit(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(a.distance(to))})
}

// distance is how many instructions lie between the next one to be written and l.
func (a *assembler) distance(l label) int { return len(a.reversed) - int(l) - 1 }

func (a *assembler) emit(i unix.SockFilter) label {
	a.reversed = append(a.reversed, i)
	return label(len(a.reversed) - 1)
}

func (a *assembler) finish() []unix.SockFilter {
	program := slices.Clone(a.reversed)
	slices.Reverse(program)
	return program
}
