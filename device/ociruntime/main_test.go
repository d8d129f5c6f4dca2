package ociruntime

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/ledger"
)

// TestMain makes the test binary berth where it is called as that: by engines, by runtimes for hooks, and by tests.
func TestMain(m *testing.M) {
	if exit, is := Main(os.Args, nil); is {
		os.Exit(exit)
	}
	os.Exit(m.Run())
}

// cdiHook is berth-cdi-hook, built for the tests.
var cdiHook = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-cdi-hook-")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "berth-cdi-hook")
	build := exec.Command("go", "build", "-o", program, "github.com/berth-project/berth/cmd/berth-cdi-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
})

// place is a host with fake GPUs, a configuration for it, and a rootfs.
type place struct {
	t      *testing.T
	host   *devicetest.Host
	config string // file
	dir    string
	self   string
}

// newPlace needs root, for device nodes and containers. options are lines of the configuration, those of the
// table berth first.
func newPlace(t *testing.T, gpus devicetest.Options, runtime string, options ...string) *place {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: containers are made")
	}
	hook, err := cdiHook()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath(runtime)
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, host: devicetest.New(t, gpus), dir: t.TempDir(), self: self}
	p.config = filepath.Join(p.dir, "berth.toml")
	text := fmt.Sprintf("[berth]\nruntime = %q\ncdi-hook = %q\nroot = %q\n%s\n", program, hook, p.host.Root, strings.Join(options, "\n"))
	p.write(p.config, text)
	return p
}

// become has berth hand on to a runtime with arguments before its own.
func (p *place) become(runtime []string) {
	p.t.Helper()
	script := filepath.Join(p.dir, "becomes")
	text := "#!/bin/sh\nexec"
	for _, a := range runtime {
		text += " '" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	p.write(script, text+" \"$@\"\n")
	if err := os.Chmod(script, 0o700); err != nil {
		p.t.Fatal(err)
	}
	config, err := os.ReadFile(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write(p.config, regexp.MustCompile(`runtime = ".*"`).ReplaceAllString(string(config), `runtime = "`+script+`"`))
}

func (p *place) write(path, text string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// bundle makes a bundle whose container runs a script of busybox.
func (p *place) bundle(script string, env ...string) (dir string) {
	p.t.Helper()
	dir = filepath.Join(p.t.TempDir(), "bundle")
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "tmp", "etc", "proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755); err != nil {
		p.t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "ls", "mknod", "sleep", "id", "env", "head"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			p.t.Fatal(err)
		}
	}
	make := exec.CommandContext(p.t.Context(), "runc", "spec", "--bundle", dir)
	if out, err := make.CombinedOutput(); err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
	p.edit(dir, func(s *oci.Spec) {
		s.Process.Terminal, s.Process.Args = false, []string{"/bin/sh", "-c", script}
		s.Process.Env = append(s.Process.Env, env...)
		s.Process.Rlimits = nil
		s.Process.NoNewPrivileges = true
		s.Root.Readonly = false
		for _, set := range []*[]string{&s.Process.Capabilities.Bounding, &s.Process.Capabilities.Effective, &s.Process.Capabilities.Permitted} {
			*set = append(*set, "CAP_MKNOD")
		}
		s.Linux.CgroupsPath = "/berth-oci-test/" + p.id() // a lease lives as long as anything in it
	})
	return dir
}

// edit changes a bundle's configuration.
func (p *place) edit(bundle string, change func(*oci.Spec)) {
	p.t.Helper()
	file := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(file)
	var s oci.Spec
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err == nil {
		change(&s)
		data, err = json.Marshal(s)
	}
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) spec(bundle string) (s oci.Spec) {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// runtime calls berth as an OCI runtime, also where a test cleans up.
func (p *place) runtime(args ...string) (out string, err error) {
	p.t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(p.t.Context()), p.self, append([]string{"oci-runtime", flagConfig, p.config, "--root", filepath.Join(p.dir, "state")}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	if slices.Contains(args, "create") { // the container would have our pipes
		file, bad := os.CreateTemp(p.dir, "out")
		if bad != nil {
			p.t.Fatal(bad)
		}
		defer file.Close()
		cmd.Stdout, cmd.Stderr = file, file
		err = cmd.Run()
		_, _ = file.Seek(0, io.SeekStart)
		data, _ := io.ReadAll(file)
		return string(data), err
	}
	err = cmd.Run()
	return both.String(), err
}

// output runs a program.
func (p *place) output(program string, args ...string) (string, error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(out), err
}

// holder is the task that has a GPU; "" if nobody has.
func (p *place) holder(gpu devicetest.GPU) string {
	p.t.Helper()
	l, err := openLedger(ledger.Dirs{})
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := l.Snapshot(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.Join(s.Devices[gpu.UUID].Tasks, ",")
}

// task is the name of a container that runtime has made.
func (p *place) task(id string) string { return taskOf(id, filepath.Join(p.dir, "state")) }

// id is a container's, of this test alone.
func (p *place) id() string { return strings.ToLower(rand.Text()) }
