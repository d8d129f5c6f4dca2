package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	imageName  = "berth-bench/busybox"
	crunHelper = "crun-helper"
)

// bed is what the contenders need: directories, a Docker daemon and a registry of our own.
type bed struct {
	dir      string
	berth    string // binary
	engine   *oci.Engine
	image    berth.Image
	registry string // address
	bundle   string // for runc and crun
	layers   []string
	keep     berth.Sandbox // holds the files that the bundle's mounts name
	procs    []*exec.Cmd
	env      []string
}

func newBed(ctx context.Context, berthBin string) (_ *bed, err error) {
	b := &bed{}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.dir, err = os.MkdirTemp("", "berth-bench-"); err != nil {
		return nil, err
	}
	if b.berth, err = filepath.Abs(berthBin); err != nil {
		return nil, err
	}
	b.env = append(os.Environ(), "BERTH_DATA_DIR="+filepath.Join(b.dir, "cli"), "DOCKER_HOST="+b.dockerHost())
	root, err := rootTar()
	if err != nil {
		return nil, err
	}
	rootFile := filepath.Join(b.dir, "root.tar")
	if err := os.WriteFile(rootFile, root, 0o600); err != nil {
		return nil, err
	}
	if b.engine, err = oci.New(oci.Config{Dir: filepath.Join(b.dir, "engine"), Idle: time.Second, Monitor: []string{b.berth}}); err != nil {
		return nil, err
	}
	if b.image, err = b.load(ctx, b.engine); err != nil {
		return nil, err
	}
	if err := b.makeBundle(ctx); err != nil {
		return nil, err
	}
	if err := b.startDocker(ctx); err != nil {
		return nil, err
	}
	for _, c := range [][]string{
		{b.berth, "image", "import", rootFile, imageName},
		{"docker", "import", rootFile, imageName},
		append(b.podman(), "import", rootFile, imageName),
	} {
		if err := b.command(ctx, c...); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// load imports the image into an engine's store.
func (b *bed) load(ctx context.Context, e *oci.Engine) (berth.Image, error) {
	f, err := os.Open(filepath.Join(b.dir, "root.tar"))
	if err != nil {
		return berth.Image{}, err
	}
	defer func() { _ = f.Close() }()
	return e.Images().Import(ctx, f, imageName, image.ImportOptions{})
}

// podman is Podman with a store of our own.
func (b *bed) podman() []string {
	return []string{
		"podman", "--root", filepath.Join(b.dir, "podman"), "--runroot", filepath.Join(b.dir, "podman-run"),
		"--tmpdir", filepath.Join(b.dir, "podman-tmp"), "--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=none", "--log-level=error",
	}
}

// command runs a program and says what it printed if it fails.
func (b *bed) command(ctx context.Context, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the contenders
	cmd.Env = b.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func rootTar() ([]byte, error) {
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, d := range []string{"bin", "etc", "tmp", "root"} {
		if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(bin))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(bin); err != nil {
		return nil, err
	}
	for _, a := range []string{"true", "sh", "sleep", "dd", "cat", "head"} {
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// makeBundle makes, of the spec that berth's own engine builds, a bundle for runc and crun: hardened alike.
func (b *bed) makeBundle(ctx context.Context) error {
	sb, err := b.engine.Open(ctx, berth.SandboxSpec{ID: "keep"})
	if err != nil {
		return err
	}
	b.keep = sb
	if _, err := sb.Start(ctx, berth.StepSpec{ID: "s", Image: b.image, Command: []string{"sleep", "1000"}, Runtime: "runc"}); err != nil {
		return err
	}
	instance, err := oci.Instance(b.engine.Dir())
	if err != nil {
		return err
	}
	found, err := filepath.Glob("/*/*/*/" + instance + "/keep/c/s/b/config.json")
	if more, gerr := filepath.Glob("/*/*/" + instance + "/keep/c/s/b/config.json"); gerr == nil {
		found = append(found, more...)
	}
	if err != nil || len(found) == 0 {
		return fmt.Errorf("the bundle that berth made for runc is not found (%w)", err)
	}
	raw, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	spec.Process.Args = []string{"/bin/true"} // without berth's init: its mount comes last
	spec.Mounts = spec.Mounts[:len(spec.Mounts)-1]
	spec.Linux.CgroupsPath = ""
	for i := range spec.Linux.Namespaces {
		spec.Linux.Namespaces[i].Path = ""
	}
	if err := b.ownFiles(&spec); err != nil {
		return err
	}
	b.bundle = filepath.Join(b.dir, "bundle")
	spec.Root.Path = filepath.Join(b.bundle, "rootfs")
	if raw, err = json.Marshal(spec); err != nil {
		return err
	}
	if err := os.MkdirAll(spec.Root.Path, 0o700); err != nil {
		return err
	}
	if b.layers, err = b.engine.Images().Layers(b.image.ID); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.bundle, "config.json"), raw, 0o600)
}

// ownFiles gives the bundle files of its own in /etc: those of the sandbox are mounted where only berth's monitor
// sees them.
func (b *bed) ownFiles(spec *specs.Spec) error {
	for i, m := range spec.Mounts {
		name, ok := strings.CutPrefix(m.Destination, "/etc/")
		if !ok || m.Type != "bind" {
			continue
		}
		spec.Mounts[i].Source = filepath.Join(b.dir, name)
		if err := os.WriteFile(spec.Mounts[i].Source, []byte("127.0.0.1\tlocalhost\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// withRoot runs f with a fresh overlay mounted as the bundle's root.
func (b *bed) withRoot(i int, bundle string, f func() error) error {
	work := filepath.Join(b.dir, fmt.Sprintf("overlay%d", i))
	for _, d := range []string{"u", "w"} {
		if err := os.MkdirAll(filepath.Join(work, d), 0o755); err != nil {
			return err
		}
	}
	defer func() { _ = os.RemoveAll(work) }()
	target := filepath.Join(bundle, "rootfs")
	opts := "volatile,lowerdir=" + strings.Join(b.layers, ":") + ",upperdir=" + work + "/u,workdir=" + work + "/w"
	if err := unix.Mount("overlay", target, "overlay", 0, opts); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	defer func() { _ = unix.Unmount(target, unix.MNT_DETACH) }()
	return f()
}

func (b *bed) startDocker(ctx context.Context) error {
	err := b.daemon("dockerd", "--host", b.dockerHost(), "--data-root", filepath.Join(b.dir, "docker"), "--exec-root", filepath.Join(b.dir, "docker-exec"),
		"--pidfile", filepath.Join(b.dir, "docker.pid"), "--bridge=none", "--iptables=false", "--ip-masq=false")
	if err != nil {
		return err
	}
	return wait(ctx, "dockerd", func() error { return b.command(ctx, "docker", "version") })
}

func (b *bed) startRegistry(ctx context.Context) error {
	if b.registry != "" {
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // only to find a free port
	if err != nil {
		return err
	}
	b.registry = l.Addr().String()
	_ = l.Close()
	cfg := filepath.Join(b.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", filepath.Join(b.dir, "registry"), b.registry)
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		return err
	}
	if err := b.daemon("docker-registry", "serve", cfg); err != nil {
		return err
	}
	return wait(ctx, "registry", func() error {
		c, err := net.Dial("tcp", b.registry) //nolint:noctx // answers or not
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// daemon starts a program that runs until the end of the bench.
func (b *bed) daemon(argv ...string) error {
	log, err := os.Create(filepath.Join(b.dir, argv[0]+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // ended by close
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.procs = append(b.procs, cmd)
	return nil
}

func wait(ctx context.Context, what string, ok func() error) error {
	var err error
	for range 300 {
		if err = ok(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not come up: %w", what, err)
}

func (b *bed) close() {
	ctx := context.Background()
	if b.keep != nil {
		_ = b.keep.Close(ctx)
	}
	if b.engine != nil {
		_ = b.engine.Close()
	}
	for _, p := range b.procs {
		_ = p.Process.Signal(unix.SIGTERM)
	}
	for _, p := range b.procs {
		_ = p.Wait()
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err == nil && b.dir != "" {
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], b.dir) {
				_ = unix.Unmount(f[1], unix.MNT_DETACH)
			}
		}
	}
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}

// runEngine runs one container through the embedded engine.
func (b *bed) runEngine(ctx context.Context, id string, command ...string) error {
	return runTask(ctx, b.engine, b.image, id, command...)
}
