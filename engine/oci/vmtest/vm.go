// Package vmtest runs static binaries in a small virtual machine with cgroup v2, for tests on hosts that
// have none: Debian's cloud kernel, an initramfs of busybox and what the caller adds, and QEMU without
// hardware help. A boot takes some seconds. Times measured inside mean nothing; results do.
//
// It is for tests only. It fetches the kernel by apt-get once and keeps it in the user's cache directory.
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Config says what the machine has and runs. Inside, everything runs as root, / is a tmpfs, cgroup2 is
// mounted on /sys/fs/cgroup, loopback is up, and /etc/passwd has a user "user" with uid 1000.
type Config struct {
	// Files are files and directories of this host, by their path inside. What is executable stays so.
	Files map[string]string
	// Commands run one after another, whatever their exit; the first word is a path inside or a busybox
	// applet.
	Commands [][]string
	// Env is set beside PATH and HOME: "K=V".
	Env []string
	// Modules are kernel modules to load, with those that they need; nil is DefaultModules.
	Modules []string
	// Disk is the size in bytes of an empty disk, /dev/vda; 0 is none.
	Disk int64
	// Memory of the machine in MiB; 0 is 1500.
	Memory int
	// Arch is the machine's architecture, in Go's words: "amd64" or "arm64"; "" is this host's.
	Arch string
	// Timeout of boot and commands together; 0 is 15 minutes, so that a slow machine with other work comes to the end.
	Timeout time.Duration
	// Output also gets what the commands write, as they do; nil is nobody.
	Output io.Writer

	// stuckAfter is when the machine tells in its output what runs; 0 is nine tenths of Timeout.
	stuckAfter time.Duration
	// still is how long the machine may give no sign of life; 0 is 3 minutes.
	still time.Duration
}

// DefaultModules are loaded where Config names none.
func DefaultModules() []string {
	return []string{
		"overlay", "loop", "veth", "dummy", "tun", "bridge",
		"nf_tables", "nft_chain_nat", "nft_masq", "nft_ct", "nft_reject_inet",
	}
}

// Result is what the commands left.
type Result struct {
	Status []int  // exit status of each command, as a shell gives it
	Output []byte // stdout and stderr of all, in order
	// Stalls says of each machine before this one that it stood still, and where.
	Stalls []string
}

// Run boots a machine and fails the test if it does not come to the end of the commands. Their exit is the
// caller's to judge.
func Run(t testing.TB, cfg Config) Result {
	t.Helper()
	r, err := Boot(t.Context(), cfg)
	for _, s := range r.Stalls {
		t.Logf("started anew: %s", s)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Output)
	}
	return r
}

// Build compiles the tests of a package into a static binary and answers its path.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	return BuildFor(t, runtime.GOARCH, pkg)
}

// BuildFor is Build for an architecture.
func BuildFor(t testing.TB, arch, pkg string) string {
	t.Helper()
	return build(t, arch, "test", "-c", "-o", filepath.Join(t.TempDir(), "test"), pkg)
}

// BuildCommand compiles a main package into a static binary and answers its path.
func BuildCommand(t testing.TB, pkg string) string {
	t.Helper()
	return build(t, runtime.GOARCH, "build", "-o", filepath.Join(t.TempDir(), filepath.Base(pkg)), pkg)
}

func build(t testing.TB, arch string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	for i, a := range args {
		if a == "-o" {
			return args[i+1]
		}
	}
	return ""
}

// Boot is Run outside a test.
func Boot(ctx context.Context, cfg Config) (Result, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Minute
	}
	if cfg.stuckAfter == 0 {
		cfg.stuckAfter = cfg.Timeout * 9 / 10
	}
	if cfg.still == 0 {
		cfg.still = 3 * time.Minute
	}
	if cfg.Memory == 0 {
		cfg.Memory = 1500
	}
	if cfg.Modules == nil {
		cfg.Modules = DefaultModules()
	}
	if cfg.Arch == "" {
		cfg.Arch = runtime.GOARCH
	}
	arch, ok := machines()[cfg.Arch]
	if !ok {
		return Result{}, fmt.Errorf("virtual machine: there is none for %s", cfg.Arch)
	}
	k, err := fetch(ctx, cfg.Arch)
	if err != nil {
		return Result{}, fmt.Errorf("virtual machine: %w", err)
	}
	dir, err := os.MkdirTemp("", "berth-vm-")
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := writeInitramfs(filepath.Join(dir, "initrd"), k, arch, cfg); err != nil {
		return Result{}, fmt.Errorf("virtual machine: %w", err)
	}
	var stalls []string
	for {
		r, err := bootFor(ctx, dir, k, arch, cfg)
		r.Stalls = stalls
		var still *stillError
		if !errors.As(err, &still) || len(stalls) == maxStalls {
			return r, err
		}
		stalls = append(stalls, err.Error())
	}
}

// maxStalls is how many times a machine that the emulator has let stand still is started anew.
const maxStalls = 2

func bootFor(ctx context.Context, dir string, k kernel, arch machine, cfg Config) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	return boot(ctx, dir, k, arch, cfg)
}

// machine is what differs between architectures.
type machine struct {
	qemu, pkg      string   // the emulator, and the package that has it
	args           []string // of the machine itself
	serial         []string // the ports for the kernel, for what the commands write and for their exits; %s are files
	console        string   // the first of them, and other options, to the kernel
	output, status string   // the others, to the commands
}

func machines() map[string]machine {
	return map[string]machine{
		"amd64": {
			qemu: "qemu-system-x86_64", pkg: "qemu-system-x86",
			// Not max: what later processors have, such as wide vectors, costs much where it is emulated.
			args:   []string{"-cpu", "Nehalem"},
			serial: []string{"-serial", "file:%s", "-serial", "stdio", "-serial", "file:%s"},
			// Where the host is busy the kernel finds its timer too slow, and stops.
			console: "ttyS0 no_timer_check", output: "/dev/ttyS1", status: "/dev/ttyS2",
		},
		"arm64": {
			qemu: "qemu-system-aarch64", pkg: "qemu-system-arm",
			// Not max: pointer authentication costs much where it is emulated.
			args: []string{"-machine", "virt", "-cpu", "cortex-a72"},
			serial: []string{
				"-serial", "file:%s", "-chardev", "stdio,id=out", "-chardev", "file,id=exit,path=%s",
				"-device", "pci-serial,chardev=out", "-device", "pci-serial,chardev=exit",
			},
			console: "ttyAMA0", output: "/dev/ttyS0", status: "/dev/ttyS1",
		},
	}
}

// boot runs QEMU.
func boot(ctx context.Context, dir string, k kernel, arch machine, cfg Config) (Result, error) {
	console, status := filepath.Join(dir, "console"), filepath.Join(dir, "status")
	args := append([]string{
		// No KVM: where it is nested it may hang.
		"-accel", "tcg,thread=multi", "-m", strconv.Itoa(cfg.Memory),
		"-smp", strconv.Itoa(min(2, runtime.NumCPU())), "-display", "none", "-monitor", "unix:" + monitorSocket + ",server=on,wait=off", "-no-reboot", "-nodefaults",
		"-kernel", k.image, "-initrd", filepath.Join(dir, "initrd"),
		"-append", "console=" + arch.console + " panic=-1 quiet nokaslr mitigations=off", // which cost as much again, and guard nobody
	}, arch.args...)
	files := []string{console, status}
	for _, a := range arch.serial {
		if strings.Contains(a, "%s") {
			a, files = fmt.Sprintf(a, files[0]), files[1:]
		}
		args = append(args, a)
	}
	if cfg.Disk > 0 {
		disk := filepath.Join(dir, "disk")
		f, err := os.Create(disk)
		if err != nil {
			return Result{}, err
		}
		err = errors.Join(f.Truncate(cfg.Disk), f.Close())
		if err != nil {
			return Result{}, err
		}
		args = append(args, "-drive", "if=virtio,format=raw,file="+disk)
	}
	var out, errs bytes.Buffer
	ctx, stop := untilParentEnds(ctx)
	defer stop()
	ctx, lives := withLife(ctx, dir, status, cfg.still)
	defer lives()
	c := exec.CommandContext(ctx, arch.qemu, args...)
	c.Dir = dir // the socket's name is short in it
	c.Stdout, c.Stderr = &out, &errs
	if cfg.Output != nil {
		c.Stdout = io.MultiWriter(&out, cfg.Output)
	}
	err := runBound(c)
	r := Result{Output: out.Bytes()}
	if errors.Is(err, exec.ErrNotFound) {
		return r, fmt.Errorf("virtual machine: there is no %s: apt-get install %s", arch.qemu, arch.pkg)
	}
	lines, _ := os.ReadFile(status)
	for f := range strings.FieldsSeq(string(lines)) {
		if f == beat {
			continue
		}
		n, err := strconv.Atoi(f)
		if err != nil {
			break
		}
		r.Status = append(r.Status, n)
	}
	if len(r.Status) < len(cfg.Commands) {
		last, _ := os.ReadFile(console)
		return r, fmt.Errorf("virtual machine: it ended after %d of %d commands: %w\n%s%s",
			len(r.Status), len(cfg.Commands), errors.Join(err, context.Cause(ctx)), errs.Bytes(), tail(last))
	}
	return r, nil
}

func tail(b []byte) []byte { return b[max(0, len(b)-4000):] }
