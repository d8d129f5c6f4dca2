package direct

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/bundle"
)

// grown are layers with what berth's own hooks have made in containers, for those that are alike: the hooks find it
// there, and have nothing to write. To write takes longer than to look, above all where it is the first thing that is
// written to a directory of the image. The zero value works.
type grown struct {
	mu   sync.Mutex
	m    map[string]string // by likeness: the directory; "" where there can be none
	next int
}

const (
	maxGrown      = 64      // layers of a starter
	maxGrownBytes = 1 << 20 // of one
	maxGrownFiles = 1 << 10 // of one
)

// errNoLayer says that what is in an upper directory is more than a layer should have.
var errNoLayer = errors.New("no layer")

func (g *grown) of(key string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.m[key]
}

// grow makes a layer of what was written to a root until now.
func (g *grown) grow(b *bundle.Bundle, key string) error {
	if b.Spare == "" || b.Root.Upper == "" || key == "" {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.m[key]; ok || len(g.m) >= maxGrown {
		return nil
	}
	if g.m == nil {
		g.m = map[string]string{}
	}
	dir := filepath.Join(b.Spare, fmt.Sprintf("grown-%d", g.next))
	g.next++
	c := copier{bytes: maxGrownBytes, files: maxGrownFiles}
	err := c.copy(b.Root.Upper, dir)
	if err == nil {
		g.m[key] = dir
		return nil
	}
	g.m[key] = ""
	if bad := os.RemoveAll(dir); bad != nil || !errors.Is(err, errNoLayer) {
		return fmt.Errorf("hooks: keep what they have made: %w", errors.Join(err, bad))
	}
	return nil
}

// copier copies a tree of an upper directory that is small and plain.
type copier struct {
	bytes int64
	files int
}

func (c *copier) copy(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if c.files--; c.files < 0 {
		return errNoLayer
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && !plainAttributes(from) {
		return errNoLayer
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		names, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, e := range names {
			if err := c.copy(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
	case unix.S_IFREG:
		if c.bytes -= st.Size; c.bytes < 0 {
			return errNoLayer
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
	default: // a whiteout, say
		return errNoLayer
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// plainAttributes says that a file of an upper directory has no attributes but those by which overlay remembers where it
// came from: others make it something else than it seems.
func plainAttributes(name string) bool {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return errors.Is(err, unix.EOPNOTSUPP)
	}
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if attr != "" && !slices.ContainsFunc([]string{".overlay.origin", ".overlay.impure", ".overlay.uuid"}, func(s string) bool { return strings.HasSuffix(attr, s) }) {
			return false
		}
	}
	return true
}

// sourcesOf looks at what bind mounts would show now.
func sourcesOf(spec *specs.Spec) func(i int) *unix.Stat_t {
	return func(i int) *unix.Stat_t {
		m := &spec.Mounts[i]
		if m.Type != "bind" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			return nil
		}
		st := new(unix.Stat_t)
		if err := unix.Stat(m.Source, st); err != nil {
			return nil // the mount will say so
		}
		return st
	}
}
