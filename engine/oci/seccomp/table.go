package seccomp

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"
)

// A table decides many numbers by one bit each, 32 in two instructions, where a tree takes one for each span of them. The
// kernel checks, translates and compiles a filter anew for each container, which takes as long as it has instructions. But it
// follows no table when it looks which calls are always allowed, and need no filter: so the machine's own calls get a tree.

const (
	tableBits = 32 // numbers in a block of a table
	tableMax  = 64 // blocks of one
	oddMax    = 32 // numbers that are decided beside one
	loadImm   = unix.BPF_LD | unix.BPF_IMM
	andImm    = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	shiftByX  = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_X
	copyToX   = unix.BPF_MISC | unix.BPF_TAX
	testBits  = unix.BPF_JSET
	fromFirst = unix.BPF_JGE
)

// bits are the decisions on all numbers from spans[0].first on: bits up to the last span, and what is beside them.
type bits struct {
	clear, set uint32 // answers
	first      uint32 // number of the first bit
	blocks     []uint32
	odd        []span // single numbers with other verdicts
	last       span
}

// bitsOf makes them; ok is false where a tree is shorter, or the numbers are too far apart.
func bitsOf(spans []span) (t bits, ok bool) {
	last := len(spans) - 1
	if last < 1 {
		return t, false
	}
	t.last, t.first = spans[last], spans[0].first&^(tableBits-1)
	n := (t.last.first - t.first + tableBits - 1) / tableBits
	if n > tableMax {
		return t, false
	}
	count := map[uint32]uint32{}
	for i, s := range spans[:last] {
		if s.rules == nil {
			count[s.answer] += spans[i+1].first - s.first
		}
	}
	answers := make([]uint32, 0, len(count))
	for a := range count {
		answers = append(answers, a)
	}
	slices.SortFunc(answers, func(a, b uint32) int { return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b)) })
	if len(answers) < 2 {
		return t, false
	}
	t.clear, t.set = answers[0], answers[1]
	t.blocks = make([]uint32, n)
	for i, s := range spans[:last] {
		for nr := s.first; nr < spans[i+1].first; nr++ {
			switch {
			case s.rules == nil && s.answer == t.clear:
			case s.rules == nil && s.answer == t.set:
				t.blocks[(nr-t.first)/tableBits] |= 1 << (nr % tableBits)
			case len(t.odd) == oddMax:
				return t, false
			default:
				t.odd = append(t.odd, span{nr, s.verdict})
			}
		}
	}
	// About what both take, but for verdicts.
	return t, 3*len(t.blocks)+len(t.odd)+6 < len(spans)
}

// tabled writes the decisions on the numbers from spans[0].first on, as a table or a tree.
func (a *assembler) tabled(spans []span) label {
	t, ok := bitsOf(spans)
	if !ok {
		return a.tree(spans)
	}
	set, unset := a.ret(t.set), a.ret(t.clear)
	a.jump(testBits, 1, set, unset)
	test := a.emit(unix.SockFilter{Code: shiftByX})
	next := a.blocks(&t, t.first, t.blocks, test)
	a.load(offNumber, next)
	a.emit(unix.SockFilter{Code: copyToX})
	next = a.emit(unix.SockFilter{Code: andImm, K: tableBits - 1})
	for _, s := range slices.Backward(t.odd) {
		next = a.jump(unix.BPF_JEQ, s.first, a.verdict(s.verdict), next)
	}
	// Its numbers come here by jumps, with the number loaded.
	return a.jump(fromFirst, t.last.first, a.verdict(t.last.verdict), next)
}

// blocks writes a binary search for the block of a number, whose bits it loads.
func (a *assembler) blocks(t *bits, first uint32, blocks []uint32, test label) label {
	if len(blocks) == 1 {
		switch blocks[0] {
		case 0:
			return a.ret(t.clear)
		case ^uint32(0):
			return a.ret(t.set)
		}
		if int(test) != len(a.reversed)-1 {
			a.far(test)
		}
		return a.emit(unix.SockFilter{Code: loadImm, K: blocks[0]})
	}
	half := len(blocks) / 2
	from := first + uint32(half)*tableBits
	high := a.blocks(t, from, blocks[half:], test)
	low := a.blocks(t, first, blocks[:half], test)
	return a.jump(fromFirst, from, high, low)
}
