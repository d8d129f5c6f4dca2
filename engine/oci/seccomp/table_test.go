package seccomp

import (
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestTables: a table answers every number as the spans say, wherever it begins and whatever is beside it.
func TestTables(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	answers := []uint32{unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | 1, retNoSys, unix.SECCOMP_RET_LOG}
	odd := []rule{{answer: unix.SECCOMP_RET_KILL_PROCESS, conditions: []condition{{arg: 0, op: specs.OpEqualTo, mask: ^uint64(0), value: 7}}}}
	tables, unaligned, full, beside := 0, 0, 0, 0
	for range 3000 {
		first := []uint32{0, 0, 1, 31, 32, 100, x32Bit, x32Bit + 5}[r.IntN(8)]
		end := first + 1 + r.Uint32N(700)
		oddness, runs := r.IntN(40), 1+r.Uint32N(20)
		var spans []span
		for nr := first; nr < end; {
			v := verdict{answer: answers[r.IntN(2)]}
			n := 1 + r.Uint32N(runs)
			if r.IntN(20) == 0 {
				n += 64
			}
			if r.IntN(40) < oddness/8 {
				n, v.answer = 1, answers[2+r.IntN(2)]
				if r.IntN(2) == 0 {
					v.rules = &odd
				}
			}
			if len(spans) == 0 || spans[len(spans)-1].verdict != v {
				spans = append(spans, span{nr, v})
			}
			nr += n
		}
		last := verdict{answer: answers[r.IntN(4)]}
		if spans[len(spans)-1].verdict != last {
			spans = append(spans, span{end, last})
		}
		b, ok := bitsOf(spans)
		if !ok {
			continue
		}
		tables++
		if first%tableBits != 0 {
			unaligned++
		}
		if len(b.odd) > 0 {
			beside++
		}
		for _, bits := range b.blocks {
			if bits == ^uint32(0) {
				full++
			}
		}
		var as, tree assembler
		as.load(offNumber, as.tabled(spans))
		tree.load(offNumber, tree.tree(spans))
		program, want := as.finish(), tree.finish()
		if len(program) > len(want)+tableBits {
			t.Errorf("%d instructions for %d spans, a tree has %d", len(program), len(spans), len(want))
		}
		for nr := first; nr < end+70; nr++ {
			for _, arg := range []uint32{7, 8} {
				if got, want := interpret(t, program, nr, arg), interpret(t, want, nr, arg); got != want {
					t.Fatalf("from %d: call %d, argument %d: answers %#x, want %#x\nspans %v", first, nr, arg, got, want, spans)
				}
			}
		}
		for _, nr := range []uint32{2*x32Bit - 1, ^uint32(0)} {
			if got := interpret(t, program, nr, 0); got != last.answer {
				t.Fatalf("call %#x: answers %#x, want %#x", nr, got, last.answer)
			}
		}
	}
	t.Logf("%d tables, %d begin within a block, %d have numbers beside them, %d blocks are full", tables, unaligned, beside, full)
	if tables < 200 || unaligned < 50 || beside < 50 || full < 50 {
		t.Error("too few tables of a kind")
	}
}

// interpret runs a program on a call with one argument.
func interpret(t *testing.T, program []unix.SockFilter, nr, arg uint32) uint32 {
	t.Helper()
	var a, x uint32
	for pc := 0; ; pc++ {
		i := program[pc]
		jump := func(yes bool) {
			pc += int(i.Jf)
			if yes {
				pc += int(i.Jt) - int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = map[uint32]uint32{offNumber: nr, offArgs: arg}[i.K]
		case loadImm:
			a = i.K
		case andImm:
			a &= i.K
		case copyToX:
			x = a
		case shiftByX:
			a >>= x
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == i.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= i.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > i.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&i.K != 0)
		default:
			t.Fatalf("instruction %d: code %#x", pc, i.Code)
		}
	}
}
