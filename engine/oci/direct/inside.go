package direct

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/hook"
)

// Berth's own hooks need no program. To execute one takes longer than all else of a start, and a container that no
// program is executed for is made as any other: its mount namespace never shows the host's files.

// The program of berth's own hooks, and its package.
const (
	ownHook    = "berth-cdi-hook"
	ownPackage = "github.com/berth-project/berth/cmd/berth-cdi-hook"
)

// maxPrograms bounds how many programs are remembered.
const maxPrograms = 64

// programs says which files are berth's program of hooks. The zero value works.
type programs struct {
	mu  sync.Mutex
	own map[programFile]bool
}

// programFile is a file as it is.
type programFile struct {
	path     string
	dev, ino uint64
	size     int64
	changed  unix.Timespec
}

func (p *programs) isOwn(file string) bool {
	if filepath.Base(file) != ownHook {
		return false
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Mode&0o111 == 0 {
		return false
	}
	key := programFile{file, st.Dev, st.Ino, st.Size, st.Ctim}
	p.mu.Lock()
	defer p.mu.Unlock()
	own, ok := p.own[key]
	if ok {
		return own
	}
	info, err := buildinfo.ReadFile(file)
	own = err == nil && info.Path == ownPackage
	if p.own == nil || len(p.own) >= maxPrograms {
		p.own = map[programFile]bool{}
	}
	p.own[key] = own
	return own
}

// canInside says whether all hooks of a spec are berth's own, and can do without their program.
func (s *Starter) canInside(spec *specs.Spec) bool {
	h := spec.Hooks
	if h == nil || len(runtimeHooks(h)) > 0 || len(h.CreateContainer) == 0 {
		return false
	}
	over := false
	for i := range h.CreateContainer {
		c := &h.CreateContainer[i]
		if len(c.Args) < 2 || !hook.Known(c.Args[1:]) || !s.programs.isOwn(c.Path) {
			return false
		}
		over = over || hook.MountsOver(c.Args[1:])
	}
	// The file is mounted into a procfs and nothing else.
	return !over || slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Type == "proc" && path.Clean(m.Destination) == "/proc" })
}

// hookMounts plans what hooks that are run inside want mounted.
func (p *plan) hookMounts() error {
	if !p.inside || !slices.ContainsFunc(p.spec.Hooks.CreateContainer, func(h specs.Hook) bool { return hook.MountsOver(h.Args[1:]) }) {
		return nil
	}
	name, contents, ok, err := p.s.params()
	if err != nil || !ok {
		return err
	}
	file := filepath.Join(p.bundle.Dir, "params")
	if err := os.WriteFile(file, contents, 0o444); err != nil {
		return fmt.Errorf("hooks: %w", err)
	}
	m := specs.Mount{Type: "bind", Source: file, Destination: name, Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "private"}}
	c := prepareMount(&m)
	if c.fd >= 0 {
		p.own(c.fd)
	}
	if err := p.mount(&m, c); err != nil {
		return fmt.Errorf("hooks: mount %s: %w", name, err)
	}
	return nil
}

// runInside runs berth's own hooks in this process, for a container that waits for it. The key is its likeness.
func (p *plan) runInside(ctx context.Context, root *os.File, key string) error {
	in := hook.Inside{Root: root, Env: p.spec.Process.Env, Log: io.Discard, Kept: &p.s.kept, Key: key}
	for i := range p.spec.Hooks.CreateContainer {
		h := hookOf{"createContainer", &p.spec.Hooks.CreateContainer[i]}
		if err := h.runInside(ctx, &in); err != nil {
			return fmt.Errorf("%s: %w", &h, err)
		}
	}
	return nil
}

// copyUp has the directories be in the container's writable layer into which hooks will put something, while the child is on
// its way still: what that takes is most of what hooks take. Nothing is changed by it, and what goes wrong goes wrong again when
// the hook comes to it.
func (p *plan) copyUp(root *os.File) {
	for i := range p.spec.Hooks.CreateContainer {
		for _, dir := range hook.Into(p.spec.Hooks.CreateContainer[i].Args[1:]) {
			fd, err := unix.Openat2(int(root.Fd()), relative(dir), &unix.OpenHow{
				Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
				Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
			})
			if err != nil {
				continue
			}
			_ = unix.Fchownat(fd, "", -1, -1, unix.AT_EMPTY_PATH)
			_ = unix.Close(fd)
		}
	}
}

// runInside runs one of them, for as long as its program could run.
func (h *hookOf) runInside(ctx context.Context, in *hook.Inside) error {
	ctx, cancel := h.limited(ctx)
	defer cancel()
	return in.Run(ctx, h.Args[1:])
}

// likeness names all that the files of the container depend on that hooks look at; "" is unknown.
func (p *plan) likeness() string {
	if p.bundle.Like == "" {
		return ""
	}
	text := strconv.AppendQuote(nil, p.bundle.Like)
	for _, h := range p.spec.Hooks.CreateContainer {
		for _, arg := range h.Args {
			text = strconv.AppendQuote(append(text, ' '), arg)
		}
		text = append(text, '\n')
	}
	var below []string // directories that are mounted
	for i, m := range p.spec.Mounts {
		at := path.Clean("/" + m.Destination)
		if slices.ContainsFunc(below, func(dir string) bool { return strings.HasPrefix(at, dir) }) {
			return "" // where it is depends on what is in such a directory
		}
		if st := p.sources[i]; st != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			below = append(below, strings.TrimSuffix(at, "/")+"/")
		}
		text = strconv.AppendQuote(text, m.Type)
		text = strconv.AppendQuote(text, m.Destination)
		if st := p.sources[i]; st != nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			for _, n := range []int64{int64(st.Dev), int64(st.Ino), int64(st.Mode), st.Size, st.Mtim.Nano(), st.Ctim.Nano()} {
				text = strconv.AppendInt(append(text, ' '), n, 16)
			}
		}
		text = append(text, '\n')
	}
	sum := sha256.Sum256(text)
	return string(sum[:])
}
