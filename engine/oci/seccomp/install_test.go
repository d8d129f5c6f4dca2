package seccomp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/seccomp"
)

// The test binary installs a filter in itself when its environment holds a profile, and says what calls answer.
const profileEnv = "BERTH_SECCOMP_PROFILE"

func TestMain(m *testing.M) {
	if p := os.Getenv(profileEnv); p != "" {
		confined(p)
		return
	}
	os.Exit(m.Run())
}

// probes are system calls whose answer without a filter is known: none is EPERM or ENOSYS.
var probes = []struct {
	name string
	call func() unix.Errno
}{
	{"getpid", func() unix.Errno { return raw(unix.SYS_GETPID, 0) }},
	{"close(-1)", func() unix.Errno { return raw(unix.SYS_CLOSE, ^uintptr(0)) }},
	{"socket(AF_VSOCK, 0)", func() unix.Errno { return raw(unix.SYS_SOCKET, unix.AF_VSOCK) }},
	{"socket(AF_UNIX, 0)", func() unix.Errno { return raw(unix.SYS_SOCKET, unix.AF_UNIX) }},
	{"personality(0xffffffff)", func() unix.Errno { return raw(unix.SYS_PERSONALITY, 0xffffffff) }},
	{"unshare(1)", func() unix.Errno { return raw(unix.SYS_UNSHARE, 1) }},
	{"clone3(NULL)", func() unix.Errno { return raw(unix.SYS_CLONE3, 0) }},
	{"keyctl(-1)", func() unix.Errno { return raw(unix.SYS_KEYCTL, ^uintptr(0)) }},
	{"call 600", func() unix.Errno { return raw(600, 0) }},
}

func raw(nr, arg uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall(nr, arg, 0, 0)
	return errno
}

func confined(profile string) {
	runtime.LockOSThread()
	out := map[string]string{}
	defer func() { _ = json.NewEncoder(os.Stdout).Encode(out) }()
	var p specs.LinuxSeccomp
	if err := json.Unmarshal([]byte(profile), &p); err != nil {
		out["error"] = err.Error()
		return
	}
	f, err := seccomp.Compile(&p)
	if err != nil {
		out["error"] = err.Error()
		return
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		out["error"] = err.Error()
		return
	}
	prog := unix.SockFprog{Len: uint16(len(f.Program)), Filter: &f.Program[0]}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, f.Flags, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		out["error"] = errno.Error()
		return
	}
	for _, probe := range probes {
		errno := probe.call()
		out[probe.name] = unix.ErrnoName(errno)
	}
}

// TestInstalled has the kernel take programs and decide by them.
func TestInstalled(t *testing.T) {
	def, err := seccomp.Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	open := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	trap := uint(unix.ENOTTY)
	own := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"getpid"}, Action: specs.ActErrno, ErrnoRet: &trap},
			{Names: []string{"close"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: ^uint64(0)}}},
		},
	}
	free := map[string]string{
		"getpid": "", "close(-1)": "EBADF", "socket(AF_UNIX, 0)": "ESOCKTNOSUPPORT", "personality(0xffffffff)": "",
		"clone3(NULL)": "EINVAL", "keyctl(-1)": "ENOTSUP", "call 600": "ENOSYS",
	}
	for _, c := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		want    map[string]string // over free
	}{
		{"open", open, nil},
		{"default", def, map[string]string{"socket(AF_VSOCK, 0)": "EPERM", "unshare(1)": "EPERM", "clone3(NULL)": "ENOSYS", "keyctl(-1)": "EPERM"}},
		{"own", own, map[string]string{"getpid": "ENOTTY", "close(-1)": "EPERM"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			profile, err := json.Marshal(c.profile)
			if err != nil {
				t.Fatal(err)
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), profileEnv+"="+string(profile))
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]string
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, p := range probes {
				want, ok := c.want[p.name]
				if !ok {
					if want, ok = free[p.name]; !ok {
						delete(got, p.name) // without a filter it hangs on the host
						continue
					}
				}
				if got[p.name] != want {
					t.Errorf("%s: %q, want %q", p.name, got[p.name], want)
				}
			}
			if e, failed := got["error"]; failed || len(got) < len(free) {
				t.Errorf("error %q, answers %v", e, got)
			}
		})
	}
}

// TestKills: an answer that kills does, and tells the two ways apart.
func TestKills(t *testing.T) {
	for _, action := range []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillThread, specs.ActKillProcess, specs.ActTrap} {
		profile, err := json.Marshal(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"getpid"}, Action: action}}})
		if err != nil {
			t.Fatal(err)
		}
		// A shell installs nothing: the Go program does, and is ended in its own thread.
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "timeout", "-s", "KILL", "0.4", self)
		cmd.Env = append(os.Environ(), profileEnv+"="+string(profile))
		out, err := cmd.Output()
		if e := (*exec.ExitError)(nil); !errors.As(err, &e) || len(out) > 0 {
			t.Errorf("%s: ran on: %v, %s", action, fmt.Sprint(err), out)
		}
	}
}
