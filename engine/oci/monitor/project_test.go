package monitor

import (
	"testing"

	"github.com/berth-project/berth/engine/oci/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestKeepProject(t *testing.T) {
	p, err := seccomp.Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	kept := keepProject(p)
	count := func(p *specs.LinuxSeccomp) (free, bound int) {
		for _, s := range p.Syscalls {
			for _, n := range s.Names {
				switch {
				case n != "ioctl":
				case len(s.Args) == 0:
					free++
				case s.Args[0] == specs.LinuxSeccompArg{Index: 1, Value: fsSetXattr, Op: specs.OpNotEqual}:
					bound++
				}
			}
		}
		return free, bound
	}
	if free, bound := count(kept); free != 0 || bound != 1 {
		t.Errorf("%d rules allow ioctl without a condition, %d with; want 0 and 1", free, bound)
	}
	if free, _ := count(p); free == 0 {
		t.Error("the shared profile was changed")
	}
	if _, err := seccomp.Compile(kept); err != nil {
		t.Error(err)
	}
}
