package grant

import (
	"cmp"
	"fmt"
	"os"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/program"
)

// ProgramsOf are the programs that hold the device rules of a process on cgroup v2, whoever made them. Errors: ErrNoGroup;
// unix.EPERM and others where the kernel does not show them, program.ErrUnknown where what they allow cannot be told.
func ProgramsOf(pid int) ([]program.Code, error) {
	g, err := GroupOf(pid)
	if err != nil {
		return nil, err
	}
	if !g.V2 {
		return nil, fmt.Errorf("process %d: %w: it was moved to the cgroup %s", pid, berth.ErrConflict, g.Dir)
	}
	dir, err := os.Open(g.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	return program.Codes(dir)
}

// gpuMajors are the numbers of NVIDIA's devices and of the kernel's DRM devices. Others that GPUs may have are looked
// for where one of them was lent.
var gpuMajors = []uint32{195, 226}

// minors is how many minor numbers are looked at.
const minors = 256

// ProvePrograms compares what programs allow together with what was lent: of the devices that could be GPUs, they allow none that was neither lent nor
// given. given says how a container may use a device beside ("rw", "r", "w", ""); runtimes are the nodes that an
// OCI runtime allows by itself. ErrDiffers says in what they differ; any other error, that what they allow cannot be told.
func ProvePrograms(codes []program.Code, lent []berth.Node, given func(berth.Node) string, runtimes ...berth.Node) error {
	p := programs{codes: codes, lent: lent, given: given, runtimes: runtimes}
	majors := map[string]map[uint32]bool{"c": {}, "b": {}}
	for _, m := range gpuMajors {
		majors["c"][m] = true
	}
	for _, n := range lent {
		if err := p.node(n); err != nil {
			return err
		}
		if majors[n.Type] != nil {
			majors[n.Type][n.Major] = true
		}
	}
	for kind, of := range majors {
		for major := range of {
			if err := p.beyond(kind, major); err != nil {
				return err
			}
		}
	}
	const shown = 4
	if more := len(p.what) - shown; more > 0 {
		p.what = append(p.what[:shown], fmt.Sprintf("and %d more", more))
	}
	return differs(p.what)
}

// programs is a comparison.
type programs struct {
	codes          []program.Code
	lent, runtimes []berth.Node
	given          func(berth.Node) string
	what           []string // differs
}

// node compares what programs allow of a node with what was lent of it.
func (p *programs) node(n berth.Node) error {
	allowed, err := program.Access(p.codes, n.Type, n.Major, n.Minor)
	if err != nil {
		return err
	}
	wanted := Without(cmp.Or(n.Permissions, "rwm"), "m") // which every container may, of any device
	if missing := Without(wanted, allowed); missing != "" {
		p.what = append(p.what, fmt.Sprintf("its device rules do not allow \"%s %s\"", number(&n), missing))
	}
	p.more(n, Without(allowed, wanted))
	return nil
}

// beyond is what programs allow of the devices with one major number, though it was neither lent nor given.
func (p *programs) beyond(kind string, major uint32) error {
	known := map[uint32]bool{}
	for _, list := range [][]berth.Node{p.lent, p.runtimes} {
		for _, n := range list {
			if n.Type == kind && n.Major == major {
				known[n.Minor] = true
			}
		}
	}
	for minor := range uint32(minors) {
		if known[minor] {
			continue
		}
		allowed, err := program.Access(p.codes, kind, major, minor)
		if err != nil {
			return err
		}
		p.more(berth.Node{Type: kind, Major: major, Minor: minor}, allowed)
	}
	return nil
}

func (p *programs) more(n berth.Node, allowed string) {
	if more := Without(allowed, p.given(n)); more != "" {
		p.what = append(p.what, fmt.Sprintf("its device rules allow \"%s %s\", which was not lent", number(&n), more))
	}
}
