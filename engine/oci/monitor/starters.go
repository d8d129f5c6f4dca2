package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/direct"
	"github.com/berth-project/berth/engine/oci/initbin"
	"github.com/berth-project/berth/engine/oci/runtime"
	"github.com/berth-project/berth/engine/oci/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The names of runtimes that are no binary.
const (
	runtimeDirect = "direct"
	runtimeAuto   = "auto"
)

// fallbacks are the binaries that "auto" takes, in this order, for what "direct" cannot do.
var fallbacks = []string{"runc", "crun"}

// starters are the ways to start a container, each made when it is first asked for.
type starters struct {
	dir    string // data directory
	cgroup *cgroup.Host

	mu       sync.Mutex
	profiles map[string]*specs.LinuxSeccomp // Docker's default one, by bounding capabilities
	direct   *direct.Starter
	byName   map[string]*runtime.Runtime
}

func newStarters(dir string, cg *cgroup.Host) *starters {
	return &starters{dir: dir, cgroup: cg, byName: map[string]*runtime.Runtime{}, profiles: map[string]*specs.LinuxSeccomp{}}
}

// forSpec chooses the starter: the one that name names, if it can start spec.
func (s *starters) forSpec(ctx context.Context, name string, spec *specs.Spec) (bundle.Starter, error) {
	switch name {
	case "", runtimeDirect:
		d, err := s.directStarter()
		if err != nil {
			return nil, err
		}
		return d, d.Check(spec)
	case runtimeAuto:
		d, err := s.directStarter()
		if err == nil {
			err = d.Check(spec)
		}
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, berth.ErrUnsupported) {
			return nil, err
		}
		for _, f := range fallbacks {
			if rt, rerr := s.binary(ctx, f); rerr == nil {
				return rt, nil
			}
		}
		return nil, fmt.Errorf("%w; no OCI runtime (%s) is installed that could", err, fallbacks[0])
	default:
		return s.binary(ctx, name)
	}
}

func (s *starters) directStarter() (*direct.Starter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.direct == nil {
		d, err := direct.New(direct.Config{})
		if err != nil {
			return nil, err
		}
		s.direct = d
	}
	return s.direct, nil
}

func (s *starters) binary(ctx context.Context, name string) (*runtime.Runtime, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rt := s.byName[name]; rt != nil {
		return rt, nil
	}
	state := filepath.Join(s.dir, runDir, "runtime-"+filepath.Base(name))
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	initPath, err := s.initFile()
	if err != nil {
		return nil, err
	}
	rt, err := runtime.New(ctx, runtime.Config{
		Command: name, Dir: state, Init: initPath,
		NoCgroup: len(s.cgroup.Controllers()) == 0,
	})
	if err != nil {
		return nil, err
	}
	s.byName[name] = rt
	return rt, nil
}

// maxProfiles bounds what users with ever other capabilities can make us hold.
const maxProfiles = 16

// defaultSeccomp is Docker's default profile for a set of capabilities, made once; with quota, as keepProject makes
// it. It is shared: nobody changes it.
func (s *starters) defaultSeccomp(bounding []string, quota bool) (*specs.LinuxSeccomp, error) {
	key := strings.Join(bounding, ",")
	if quota {
		key += " quota"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.profiles[key]; p != nil {
		return p, nil
	}
	p, err := seccomp.Default(bounding)
	if err != nil {
		return nil, err
	}
	if quota {
		p = keepProject(p)
	}
	if len(s.profiles) >= maxProfiles {
		clear(s.profiles)
	}
	s.profiles[key] = p
	return p, nil
}

// fsSetXattr is the request of ioctl(2) by which the owner of a file changes its project, and with that
// leaves a project quota.
const fsSetXattr = 0x401c5820

// keepProject is the profile without that ioctl.
func keepProject(p *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	out := *p
	out.Syscalls = nil
	for _, s := range p.Syscalls {
		if s.Action == specs.ActAllow && slices.Contains(s.Names, "ioctl") && len(s.Args) == 0 {
			s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(n string) bool { return n == "ioctl" })
			out.Syscalls = append(out.Syscalls, notProject()...)
		}
		out.Syscalls = append(out.Syscalls, s)
	}
	return &out
}

// notProject allows ioctl where one of the 32 bits of its request differs from fsSetXattr's. The kernel takes
// no more bits, so to compare all 64 would let it through with others set.
func notProject() []specs.LinuxSyscall {
	rules := make([]specs.LinuxSyscall, 32)
	for i := range rules {
		bit := uint64(1) << i
		rules[i] = specs.LinuxSyscall{
			Names: []string{"ioctl"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: bit, ValueTwo: ^uint64(fsSetXattr) & bit, Op: specs.OpMaskedEqual}},
		}
	}
	return rules
}

// initFile writes berth's init where OCI runtimes can bind it from.
func (s *starters) initFile() (string, error) {
	path := filepath.Join(s.dir, runDir, "init")
	tmp := path + ".new"
	if err := os.WriteFile(tmp, initbin.ELF(), 0o500); err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o555); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}

func (s *starters) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.direct != nil {
		_ = s.direct.Close()
	}
}
