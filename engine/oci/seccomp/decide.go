package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// What a filter answers beside SECCOMP_RET_*.
const (
	retBadArch = uint32(unix.SECCOMP_RET_KILL_THREAD) // libseccomp's answer to an architecture that a profile does not list
	retNoSys   = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
	errnoMax   = 4095
	argsMax    = 6
)

// plan is a profile as decisions, before it becomes instructions.
type plan struct {
	sections []planned
	flags    uintptr
}

// planned is the part of a plan for one architecture that the kernel reports: the decision on each system
// call number, as ranges that cover all numbers from 0 on.
type planned struct {
	audit  uint32
	own    bool // the machine's own is in it
	ranges []span
}

// span is the decision on all numbers from first up to the next span's.
type span struct {
	first uint32
	verdict
}

// verdict is an answer, or, where rules is set, the first of those that match and else the answer.
type verdict struct {
	answer uint32
	rules  *[]rule
	narrow bool // of the arguments, only the low 32 bits count
}

// rule gives its answer where all conditions hold.
type rule struct {
	answer     uint32
	conditions []condition
}

// condition compares one argument. Both values are those after masking, for MASKED_EQ.
type condition struct {
	arg         uint
	op          specs.LinuxSeccompOperator
	mask, value uint64
}

// decide reads a profile as runc does with libseccomp, and the kernel's order of precedence where two rules
// with conditions hold for one call and answer differently.
func decide(m machine, profile *specs.LinuxSeccomp) (*plan, error) {
	if profile == nil {
		return nil, fmt.Errorf("%w: there is none", berth.ErrInvalid)
	}
	otherwise, err := answer(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	listed, err := m.listed(profile.Architectures)
	if err != nil {
		return nil, err
	}
	flags, err := flagsOf(profile.Flags)
	if err != nil {
		return nil, err
	}
	entries, err := entriesOf(profile, otherwise)
	if err != nil {
		return nil, err
	}
	p := &plan{flags: flags}
	for _, s := range m.audit {
		var tables []*table
		for _, a := range s.archs {
			if slices.Contains(listed, a) {
				tables = append(tables, tableOf(a, entries, otherwise))
			}
		}
		if len(tables) > 0 {
			p.sections = append(p.sections, planned{s.audit, slices.Contains(s.archs, m.own), ranges(tables, otherwise)})
		}
	}
	return p, nil
}

// entry is one name of a profile with what shall be answered.
type entry struct {
	name      string
	rules     []rule // any of them; one without conditions matches always
	redundant bool   // answers as the default does: it counts only as a name that the profile knows
}

func entriesOf(profile *specs.LinuxSeccomp, otherwise uint32) ([]entry, error) {
	var entries []entry
	for i, s := range profile.Syscalls {
		ret, err := answer(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		rules, err := rulesOf(ret, s.Args)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		for _, name := range s.Names {
			if name == "" {
				return nil, fmt.Errorf("syscalls[%d]: %w: a name is empty", i, berth.ErrInvalid)
			}
			entries = append(entries, entry{name, rules, ret == otherwise})
		}
	}
	return entries, nil
}

// rulesOf reads conditions on different arguments as one rule, and where two look at the same argument, each
// condition as a rule of its own: so runc does.
func rulesOf(ret uint32, args []specs.LinuxSeccompArg) ([]rule, error) {
	var seen [argsMax]int
	all := rule{answer: ret}
	apart := false
	for _, a := range args {
		if a.Index >= argsMax {
			return nil, fmt.Errorf("%w: argument index %d; a system call has arguments 0 to %d", berth.ErrInvalid, a.Index, argsMax-1)
		}
		c := condition{arg: a.Index, op: a.Op, mask: ^uint64(0), value: a.Value}
		switch a.Op {
		case specs.OpMaskedEqual:
			c.mask, c.value = a.Value, a.ValueTwo&a.Value
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterEqual, specs.OpGreaterThan:
		default:
			return nil, fmt.Errorf("operator %q: %w", a.Op, berth.ErrInvalid)
		}
		all.conditions = append(all.conditions, c)
		seen[a.Index]++
		apart = apart || seen[a.Index] > 1
	}
	if !apart {
		return []rule{all}, nil
	}
	var rules []rule
	for _, c := range all.conditions {
		rules = append(rules, rule{ret, []condition{c}})
	}
	return rules, nil
}

// table is what a profile says for one architecture.
type table struct {
	arch    arch
	calls   map[uint32]*verdict
	largest uint32 // the highest number that the profile names; above it calls are too new for the profile to know
	noSys   bool   // and are answered as a kernel does that does not have them
}

func tableOf(a arch, entries []entry, otherwise uint32) *table {
	t := &table{arch: a, calls: map[uint32]*verdict{}}
	for _, e := range entries {
		through, selector, multiplexed := a.multiplexed(e.name)
		nr, ok := a.number(e.name)
		if ok && !multiplexed {
			t.largest = max(t.largest, nr)
		}
		if e.redundant {
			continue
		}
		for _, r := range e.rules {
			if multiplexed {
				// The first argument selects the function: a condition on the function's own cannot be kept.
				cs := []condition{{arg: 0, op: specs.OpEqualTo, mask: ^uint64(0), value: uint64(selector)}}
				for _, c := range r.conditions {
					if c.arg != 0 {
						cs = append(cs, c)
					}
				}
				n, _ := a.number(through)
				t.add(n, rule{r.answer, cs}, otherwise)
			}
			if ok {
				t.add(nr, r, otherwise)
			}
		}
	}
	t.noSys = t.largest != 0 && !permissive(otherwise)
	for _, v := range t.calls {
		if v.rules != nil {
			slices.SortStableFunc(*v.rules, func(a, b rule) int { return precedence(a.answer) - precedence(b.answer) })
		}
	}
	return t
}

// add adds a rule for a call. One without conditions replaces all that have some; of two without, the first stays.
func (t *table) add(nr uint32, r rule, otherwise uint32) {
	r.conditions = slices.DeleteFunc(slices.Clone(r.conditions), func(c condition) bool {
		return c.mask == 0 || t.arch.narrow() && uint32(c.mask) == 0
	})
	v := t.calls[nr]
	switch {
	case v != nil && v.rules == nil:
	case len(r.conditions) == 0:
		t.calls[nr] = &verdict{answer: r.answer}
	case v == nil:
		t.calls[nr] = &verdict{answer: otherwise, rules: &[]rule{r}, narrow: t.arch.narrow()}
	default:
		*v.rules = append(*v.rules, r)
	}
}

// ranges joins the tables that share one audit architecture (amd64 and x32) to the decisions on all numbers.
func ranges(tables []*table, otherwise uint32) []span {
	firsts := []uint32{0, x32Bit, 2 * x32Bit, 3 * x32Bit, ^uint32(0)}
	for _, t := range tables {
		firsts = append(firsts, t.largest+1)
		for nr := range t.calls {
			firsts = append(firsts, nr, nr+1)
		}
	}
	slices.Sort(firsts)
	var spans []span
	for _, nr := range slices.Compact(firsts) {
		v := verdictOn(nr, tables, otherwise)
		if n := len(spans); n == 0 || spans[n-1].verdict != v {
			spans = append(spans, span{nr, v})
		}
	}
	return spans
}

// verdictOn decides a number. On amd64 the bit of x32 says which table counts.
func verdictOn(nr uint32, tables []*table, otherwise uint32) verdict {
	t := tables[0]
	if t.arch == amd64 && nr&x32Bit != 0 || t.arch == x32 {
		i := slices.IndexFunc(tables, func(t *table) bool { return t.arch == x32 })
		switch {
		case i >= 0:
			t = tables[i]
		case nr == ^uint32(0): // a tracer skips a call by making it number -1
			return verdict{answer: otherwise}
		default:
			return verdict{answer: retBadArch}
		}
	}
	switch v := t.calls[nr]; {
	case t.noSys && nr > t.largest: // even where a multiplexed call has rules: so runc does
		return verdict{answer: retNoSys}
	case v != nil:
		return *v
	case t.arch == amd64 && len(tables) == 1 && nr >= x32Bit:
		return verdict{answer: retBadArch}
	}
	return verdict{answer: otherwise}
}

// permissive reports whether an answer lets a call happen, so that calls newer than the profile may too.
func permissive(answer uint32) bool {
	switch answer & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return true
	}
	return false
}

// precedence orders answers as the kernel does between filters: the most restrictive first.
func precedence(answer uint32) int { return int(int32(answer & unix.SECCOMP_RET_ACTION_FULL)) }

func answer(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	withErrno := func(ret uint32, largest uint) (uint32, error) {
		if errno == nil {
			return ret | uint32(unix.EPERM), nil
		}
		if *errno > largest {
			return 0, fmt.Errorf("errnoRet %d: %w: %s takes 0 to %d", *errno, berth.ErrInvalid, action, largest)
		}
		return ret | uint32(*errno), nil
	}
	switch action {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return withErrno(unix.SECCOMP_RET_ERRNO, errnoMax)
	case specs.ActTrace:
		return withErrno(unix.SECCOMP_RET_TRACE, 0xffff)
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("action %s: %w: berth has no seccomp agent", action, berth.ErrUnsupported)
	}
	return 0, fmt.Errorf("action %q: %w", action, berth.ErrInvalid)
}

// flagTSync is no flag of the runtime spec; runc knows it and does nothing for it, as one thread only lives on.
const flagTSync specs.LinuxSeccompFlag = "SECCOMP_FILTER_FLAG_TSYNC"

func flagsOf(names []specs.LinuxSeccompFlag) (uintptr, error) {
	var flags uintptr
	for _, n := range names {
		switch n {
		case flagTSync:
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			return 0, fmt.Errorf("flag %s: %w: it is of use only with %s", n, berth.ErrUnsupported, specs.ActNotify)
		default:
			return 0, fmt.Errorf("flag %q: %w", n, berth.ErrInvalid)
		}
	}
	return flags, nil
}
