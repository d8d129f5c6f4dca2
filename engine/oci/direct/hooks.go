package direct

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/thread"
)

// Hooks are programs of the host's, named by an OCI spec, that do something to a container before its command
// begins. As with runc, they run when all mounts are made and the root is not changed yet: those of createRuntime
// (and prestart) in this process's namespaces, then those of createContainer in the container's. There the host's
// files are still to be seen at their paths, and the container's root lies in the bundle.
//
// So a container with hooks is made by a thread that sees the host's mounts (kindHosted), and pivot_root takes them
// away afterwards.

const (
	// rootDir is where the container's root lies in the bundle while hooks run.
	rootDir = "rootfs"
	// hookMax is how long a hook may take that has no time limit of its own.
	hookMax = time.Minute
	// hookWords is how much of what a hook wrote to standard error is kept, in bytes.
	hookWords = 2 << 10
	// hookGrace is how long the streams of a hook that has ended may stay open.
	hookGrace = time.Second
)

// hasHooks reports whether a spec has hooks that run before the command.
func hasHooks(h *specs.Hooks) bool {
	return h != nil && len(runtimeHooks(h))+len(h.CreateContainer) > 0
}

// runtimeHooks are those that run in this process's namespaces.
func runtimeHooks(h *specs.Hooks) []hookOf {
	var all []hookOf
	for i := range h.Prestart { //nolint:staticcheck // deprecated, and part of CDI
		all = append(all, hookOf{"prestart", &h.Prestart[i]}) //nolint:staticcheck // as above
	}
	for i := range h.CreateRuntime {
		all = append(all, hookOf{"createRuntime", &h.CreateRuntime[i]})
	}
	return all
}

// hookOf is a hook and its stage.
type hookOf struct {
	stage string
	*specs.Hook
}

func (h *hookOf) String() string {
	words := []string{h.Path}
	if len(h.Args) > 1 {
		words = append(words, h.Args[1:]...)
	}
	text := strings.Join(words, " ")
	if len(text) > 200 {
		text = text[:200] + "…"
	}
	return h.stage + " hook " + text
}

// checkHooks refuses hooks that make no sense.
func checkHooks(spec *specs.Spec) error {
	if !hasHooks(spec.Hooks) {
		return nil
	}
	all := runtimeHooks(spec.Hooks)
	for i := range spec.Hooks.CreateContainer {
		all = append(all, hookOf{"createContainer", &spec.Hooks.CreateContainer[i]})
	}
	for _, h := range all {
		switch {
		case !filepath.IsAbs(h.Path):
			return fmt.Errorf("hooks.%s: %q: %w: its path is not absolute", h.stage, h.Path, berth.ErrInvalid)
		case h.Timeout != nil && *h.Timeout <= 0:
			return fmt.Errorf("hooks.%s: %s: %w: its timeout of %d s is not above 0", h.stage, h.Path, berth.ErrInvalid, *h.Timeout)
		case strings.Contains(h.Path+strings.Join(h.Args, "")+strings.Join(h.Env, ""), "\x00"):
			return fmt.Errorf("hooks.%s: %q: %w: it has a zero byte", h.stage, h.Path, berth.ErrInvalid)
		}
	}
	if _, ok := namespace(spec, specs.UserNamespace); ok {
		return fmt.Errorf("hooks: %w by a direct start in a container with a user namespace of its own", berth.ErrUnsupported)
	}
	return nil
}

// makeBundle writes what hooks look for in the directory of a bundle: its configuration, and a place for the root.
func makeBundle(b *bundle.Bundle) error {
	if !filepath.IsAbs(b.Dir) {
		return fmt.Errorf("hooks: %w: the bundle has no directory", berth.ErrInvalid)
	}
	spec := *b.Spec
	root := specs.Root{}
	if spec.Root != nil {
		root = *spec.Root
	}
	root.Path = filepath.Join(b.Dir, rootDir)
	spec.Root = &root
	raw, err := json.Marshal(&spec)
	if err != nil {
		return err
	}
	if err := os.Mkdir(root.Path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("hooks: %w", err)
	}
	if err := os.WriteFile(filepath.Join(b.Dir, "config.json"), raw, 0o600); err != nil {
		return fmt.Errorf("hooks: %w", err)
	}
	return nil
}

// mountHosted adds the steps that put the root into the bundle's directory, upon a small file system that has what
// hides masked paths. Nothing that is mounted from here on is seen on the host.
func (p *plan) mountHosted() error {
	small, err := smallRoot()
	if err != nil {
		return err
	}
	p.own(small)
	b := p.b
	p.small = p.inherit(small)
	b.doing("keep mounts from", "the host")
	b.call(unix.SYS_MOUNT, 0, b.str("/"), 0, unix.MS_REC|unix.MS_SLAVE, 0)
	empty := b.str("")
	b.doing("mount", "small root")
	b.call(unix.SYS_MOVE_MOUNT, p.small, empty, atCwd, b.str(filepath.Join(p.bundle.Dir, rootDir)), unix.MOVE_MOUNT_F_EMPTY_PATH)
	b.doing("mount", "root")
	b.call(unix.SYS_MOVE_MOUNT, p.root, empty, p.small, empty, moveByFd)
	return nil
}

// smallRoot is a detached read-only file system as that of a forking thread.
func smallRoot() (int, error) {
	fd, err := tinyRoot()
	if err != nil {
		return -1, err
	}
	err = fillTiny(fd, false)
	if err == nil {
		err = unix.Mknodat(fd, nullFile, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
		if errors.Is(err, unix.EPERM) {
			// Devices cannot be made in a user namespace. An empty file that cannot be written hides as well.
			err = unix.Mknodat(fd, nullFile, unix.S_IFREG|0o444, 0)
		} else if err == nil {
			err = unix.Fchmodat(fd, nullFile, 0o666, 0)
		}
	}
	if err == nil {
		err = mountSetattr(fd, false, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make small root: %w", err)
	}
	return fd, nil
}

// ready adds the meeting at which all of the container is there: hooks run, and who asked for it looks at it.
func (p *plan) ready(ctx context.Context, root *os.File) error {
	if !p.hosted && !p.inside && p.bundle.Ready == nil {
		return nil
	}
	key := ""
	before := func() {
		if p.inside {
			key = p.likeness()
			p.copyUp(root)
		}
	}
	return p.meet("wait for hooks and checks", before, func(pid int) error {
		if p.hosted {
			if err := p.runHooks(ctx, pid); err != nil {
				return err
			}
		}
		if p.inside {
			if err := p.runInside(ctx, root, key); err != nil {
				return err
			}
		}
		if p.bundle.Ready == nil {
			return nil
		}
		return p.bundle.Ready(bundle.Created{Pid: pid, Root: root})
	})
}

// runHooks runs the hooks of a container that waits for it.
func (p *plan) runHooks(ctx context.Context, pid int) error {
	state := specs.State{
		Version: p.spec.Version, ID: p.bundle.ID, Status: specs.StateCreating, Pid: pid,
		Bundle: p.bundle.Dir, Annotations: p.spec.Annotations,
	}
	for _, h := range runtimeHooks(p.spec.Hooks) {
		if err := h.run(ctx, state, p.bundle.Dir); err != nil {
			return err
		}
	}
	if len(p.spec.Hooks.CreateContainer) == 0 {
		return nil
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open process of the container: %w", err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	state.Pid = 1 // as it is in the container's pid namespace
	return thread.Own(func() error {
		if err := p.enter(pidfd); err != nil {
			return err
		}
		for i := range p.spec.Hooks.CreateContainer {
			h := hookOf{"createContainer", &p.spec.Hooks.CreateContainer[i]}
			if err := h.run(ctx, state, filepath.Join(p.bundle.Dir, rootDir)); err != nil {
				return err
			}
		}
		return nil
	})
}

// enter has this thread enter all namespaces of a container; what it makes is in them then.
func (p *plan) enter(pidfd int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter container for its hooks: %w", err)
	}
	if err := unix.Setns(pidfd, int(p.confined().namespaces)); err != nil {
		return fmt.Errorf("enter container for its hooks: %w", err)
	}
	return nil
}

// limited is ctx for as long as the hook may take.
func (h *hookOf) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := hookMax
	if h.Timeout != nil {
		limit = time.Duration(*h.Timeout) * time.Second
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v", limit))
}

// run runs the hook to its end, in dir. It gets the state of the container as its standard input, and no more of an
// environment than it brings.
func (h *hookOf) run(ctx context.Context, state specs.State, dir string) error {
	raw, err := json.Marshal(state)
	if err != nil {
		return err
	}
	ctx, cancel := h.limited(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // not nil, which would be this process's
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(raw)
	words := &tail{}
	cmd.Stderr = words
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if state.Pid != 1 {
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
		runtime.LockOSThread() // its parent is this thread, which must not be ended by another goroutine meanwhile
		defer runtime.UnlockOSThread()
	} // In a container's pid namespace it ends with pid 1, which ends with us; the parent that it would ask for is not seen there.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = hookGrace
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended well; something that it left behind holds its streams
	}
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if said := words.String(); said != "" {
		return fmt.Errorf("%s: %w: it wrote %q", h, err, said)
	}
	return fmt.Errorf("%s: %w", h, err)
}

// tail keeps the end of what is written to it.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if beyond := len(t.text) - hookWords; beyond > 0 {
		t.text = t.text[beyond:]
	}
	return len(b), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.text)) }
