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
				default:
					bound++
				}
			}
		}
		return free, bound
	}
	if free, bound := count(kept); free != 0 || bound != 32 {
		t.Errorf("%d rules allow ioctl without a condition, %d with; want 0 and 32", free, bound)
	}
	if free, _ := count(p); free == 0 {
		t.Error("the shared profile was changed")
	}
	if _, err := seccomp.Compile(kept); err != nil {
		t.Error(err)
	}
	allowed := func(request uint64) bool {
		for _, r := range notProject() {
			if a := r.Args[0]; request&a.Value == a.ValueTwo {
				return true
			}
		}
		return false
	}
	for request, want := range map[uint64]bool{
		fsSetXattr: false, 1<<40 | fsSetXattr: false, fsSetXattr ^ 1: true, 0x5401: true, 0: true, 0xffffffff: true,
	} {
		if got := allowed(request); got != want {
			t.Errorf("ioctl %#x allowed: %v, want %v", request, got, want)
		}
	}
}
