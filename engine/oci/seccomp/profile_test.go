package seccomp_test

import (
	"errors"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/seccomp"
)

func TestLoad(t *testing.T) {
	one := uint(1)
	for _, c := range []struct {
		name, profile string
		bounding      []string
		want          *specs.LinuxSeccomp
	}{
		{
			"plain OCI", `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":["SCMP_ARCH_X86"],"flags":["SECCOMP_FILTER_FLAG_LOG"],
			"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":18446744073709551615,"op":"SCMP_CMP_EQ"}]}]}`, nil,
			&specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno, DefaultErrnoRet: &one, Architectures: []specs.Arch{specs.ArchX86}, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Value: ^uint64(0), Op: specs.OpEqualTo}}}},
			},
		},
		{
			"Docker's old form", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"mkdir","action":"SCMP_ACT_ERRNO"}]}`, nil,
			&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}}},
		},
		{
			"architectures mapped", `{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X32"]},{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_X32"]}]}`, nil,
			&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[runtime.GOARCH], specs.ArchX32}},
		},
		{
			"conditions", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
			{"names":["a"],"action":"SCMP_ACT_KILL","includes":{"caps":["CAP_CHOWN"]}},
			{"names":["b"],"action":"SCMP_ACT_KILL","includes":{"caps":["CAP_SYS_ADMIN"]}},
			{"names":["c"],"action":"SCMP_ACT_KILL","excludes":{"caps":["CAP_CHOWN"]}},
			{"names":["d"],"action":"SCMP_ACT_KILL","includes":{"minKernel":"4.1"}},
			{"names":["e"],"action":"SCMP_ACT_KILL","includes":{"minKernel":"99.9"}},
			{"names":["f"],"action":"SCMP_ACT_KILL","includes":{"arches":["` + runtime.GOARCH + `"]}},
			{"names":["g"],"action":"SCMP_ACT_KILL","excludes":{"arches":["` + runtime.GOARCH + `"]}}]}`,
			[]string{"CAP_CHOWN"},
			&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
				{Names: []string{"a"}, Action: specs.ActKill}, {Names: []string{"d"}, Action: specs.ActKill}, {Names: []string{"f"}, Action: specs.ActKill},
			}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := seccomp.Load([]byte(c.profile), c.bounding)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, c := range []struct{ name, profile, says string }{
		{"empty", ``, "line 1, column 0"},
		{"no JSON", "{\n  \"defaultAction\": SCMP", "line 2, column 20"},
		{"another type", "{\n\"defaultAction\": 3}", "line 2"},
		{"more behind it", `{"defaultAction":"SCMP_ACT_ALLOW"} {}`, "line 1, column 36"},
		{"no default", `{}`, "defaultAction"},
		{"null", `null`, "defaultAction"},
		{"null call", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`, "syscalls[0]"},
		{"name and names", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"]}]}`, "both 'name' and 'names'"},
		{"both kinds of architectures", `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]}`, "archMap"},
		{"kernel version", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"includes":{"minKernel":"new"}}]}`, "kernel version"},
		{"too large", strings.Repeat(" ", 2<<20), "bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := seccomp.Load([]byte(c.profile), nil)
			if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %+v, %v; want ErrInvalid that says %s", p, err, c.says)
			}
		})
	}
}

// FuzzLoad loads and compiles what a user may write. What compiles, the kernel must be able to run.
func FuzzLoad(f *testing.F) {
	f.Add(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":1,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]}]}`)
	f.Add(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"name":"open","action":"SCMP_ACT_TRACE","errnoRet":7,"includes":{"caps":["CAP_CHOWN"],"minKernel":"4.8"}}]}`)
	f.Add(`{"defaultAction":"SCMP_ACT_KILL","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["clone"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_LE"},{"index":0,"value":9,"op":"SCMP_CMP_GT"}]}]}`)
	f.Fuzz(func(t *testing.T, profile string) {
		p, err := seccomp.Load([]byte(profile), []string{"CAP_CHOWN"})
		if err != nil {
			if !errors.Is(err, berth.ErrInvalid) {
				t.Errorf("the error has no kind: %v", err)
			}
			return
		}
		for goarch, archs := range audits {
			filter, err := seccomp.CompileFor(goarch, p)
			if err != nil {
				if !errors.Is(err, berth.ErrInvalid) && !errors.Is(err, berth.ErrUnsupported) {
					t.Errorf("the error has no kind: %v", err)
				}
				continue
			}
			verify(t, filter.Program)
			for _, a := range archs {
				for _, nr := range []uint32{0, 1, 41, 56, 220, 1 << 30, ^uint32(0)} {
					run(filter.Program, &data{nr, a, [6]uint64{1, 2, 3, 4, 5, 6}})
				}
			}
		}
	})
}
