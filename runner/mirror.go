package runner

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/runner/untar"
	"github.com/berth-project/berth/staging"
)

// mirror brings here what the outputs of a task name in volumes on another machine, and nothing else: each volume has a
// directory, in which what was brought lies where it does there. Links stay links, and what they lead to in a volume is
// brought too, so that outputs are found in the mirror as they would be in the volumes themselves.
type mirror struct {
	d       *drive
	from    berth.VolumeArchiver
	volumes []string // their paths, the innermost first
	roots   map[string]*os.Root
	brought map[string]bool // paths of the steps, with all that is below them
	todo    []string
	links   int
	looks   int
}

// They bound what a task can have berth look for: each link costs a question or two, and so does each directory above.
// What lies beyond them is as if it were not there.
const (
	maxMirrorLinks = 10000
	maxMirrorLooks = 20000
)

// mirrored is the mirror of a volume. The first call brings what the outputs name, of all volumes.
func (d *drive) mirrored(from berth.VolumeArchiver, volume string) (*os.Root, error) {
	if d.mirror == "" {
		dir := d.dir.mirror()
		err := d.persist(d.now, func() error {
			if err := removeAll(dir); err != nil { // half of what was brought before
				return kind(err)
			}
			return d.bring(from, dir)
		})
		if err != nil {
			return nil, err
		}
		d.mirror = dir
	}
	root, err := os.OpenRoot(mirrorOf(d.mirror, volume))
	return root, kind(err)
}

// mirrorOf is the directory for a volume: its path is the task's to choose, and may lie in another's.
func mirrorOf(dir, volume string) string {
	return filepath.Join(dir, strings.ReplaceAll(strings.ReplaceAll(volume[1:], "%", "%25"), "/", "%2F"))
}

func (d *drive) bring(from berth.VolumeArchiver, dir string) error {
	m := &mirror{d: d, from: from, roots: map[string]*os.Root{}, brought: map[string]bool{}}
	defer func() {
		for _, r := range m.roots {
			_ = r.Close()
		}
	}()
	for _, p := range d.lay.places {
		if p.kind != placeVolume {
			continue
		}
		host := mirrorOf(dir, p.path)
		if err := os.MkdirAll(host, 0o700); err != nil {
			return kind(err)
		}
		root, err := os.OpenRoot(host)
		if err != nil {
			return kind(err)
		}
		m.roots[p.path] = root
		m.volumes = append(m.volumes, p.path)
	}
	slices.SortFunc(m.volumes, func(a, b string) int { return len(b) - len(a) })
	for _, o := range d.rec.Task.Outputs {
		p := path.Clean(o.Path)
		if staging.IsPattern(o.Path) {
			var err error
			if p, err = outputDir(o); err != nil {
				return err
			}
		}
		m.todo = append(m.todo, p)
	}
	for len(m.todo) > 0 {
		p := m.todo[0]
		m.todo = m.todo[1:]
		if err := m.path(p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// volumeOf is the innermost volume that holds a path; "" if none does.
func (m *mirror) volumeOf(p string) string {
	for _, v := range m.volumes {
		if within(p, v) {
			return v
		}
	}
	return ""
}

// path brings what is at a path, and the links that lead there.
func (m *mirror) path(p string) error {
	for _, v := range m.volumes { // those that lie in what is to be brought
		if v != p && within(v, p) {
			m.todo = append(m.todo, v)
		}
	}
	v := m.volumeOf(p)
	if v == "" {
		return nil
	}
	at := v
	names := strings.FieldsFunc(strings.TrimPrefix(p, v), func(r rune) bool { return r == '/' })
	for i, name := range names {
		if m.has(at) {
			return nil
		}
		at = path.Join(at, name)
		if i == len(names)-1 {
			break
		}
		rel := strings.TrimPrefix(at, v+"/")
		if st, err := m.roots[v].Lstat(rel); err == nil && st.IsDir() {
			continue // it was looked at
		}
		if m.looks++; m.looks > maxMirrorLooks {
			return nil
		}
		h, err := m.look(at)
		if errors.Is(err, berth.ErrNotFound) || err == nil && h.Typeflag != tar.TypeDir && h.Typeflag != tar.TypeSymlink {
			return nil // there is nothing: who looks in the mirror says so
		} else if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeSymlink {
			m.follow(path.Dir(at), h.Linkname, names[i+1:]...)
			if err := m.roots[v].Symlink(h.Linkname, rel); err != nil && !errors.Is(err, fs.ErrExist) {
				return kind(err)
			}
			return nil
		}
		if err := m.roots[v].Mkdir(rel, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return kind(err)
		}
	}
	if m.has(at) {
		return nil
	}
	return m.take(v, at)
}

// has reports whether a path was brought, or a directory above it in its volume.
func (m *mirror) has(p string) bool {
	for v := m.volumeOf(p); ; p = path.Dir(p) {
		if m.brought[p] {
			return true
		}
		if p == v || p == "/" {
			return false
		}
	}
}

// follow has what a link leads to be brought too.
func (m *mirror) follow(dir, target string, below ...string) {
	if m.links++; m.links > maxMirrorLinks {
		return
	}
	if !path.IsAbs(target) {
		target = path.Join(dir, target)
	}
	if p := path.Join(append([]string{path.Clean(target)}, below...)...); !m.has(p) && !slices.Contains(m.todo, p) {
		m.todo = append(m.todo, p)
	}
}

// look is what is at a path, without what is in it.
func (m *mirror) look(p string) (*tar.Header, error) {
	r, err := m.from.ArchiveVolume(m.d.now, p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	h, err := tar.NewReader(r).Next()
	if err != nil {
		return nil, fmt.Errorf("read archive: %w: %w", berth.ErrUnavailable, err)
	}
	return h, nil
}

// take brings what is at a path of a volume, with all that is in it.
func (m *mirror) take(v, p string) error {
	r, err := m.from.ArchiveVolume(m.d.now, p)
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	m.brought[p] = true
	root, err := m.room(v, p)
	if err != nil {
		return kind(err)
	}
	defer func() { _ = root.Close() }()
	left := map[string]bool{} // names of what is left out
	err = untar.Each(r, root, func(h *tar.Header) (bool, error) {
		at := path.Join(path.Dir(p), h.Name) //nolint:gosec // a path in the container, that is asked for there
		switch {
		case h.Typeflag == tar.TypeSymlink:
			m.follow(path.Dir(at), h.Linkname)
		case untar.Special(h) || h.Typeflag == tar.TypeLink && left[path.Clean(h.Linkname)]:
			left[path.Clean(h.Name)] = true
			m.d.warn(fmt.Sprintf("output %s: %s is neither a file nor a directory, and is left out", p, at))
			return false, nil
		}
		if p == v { // its own name is none in its mirror
			h.Name = inside(h.Name)
			if h.Typeflag == tar.TypeLink {
				h.Linkname = inside(h.Linkname)
			}
		}
		return true, nil
	})
	return kind(err)
}

// inside is a name of an archive without that of the directory which all of it lies in.
func inside(name string) string {
	_, rest, _ := strings.Cut(name, "/")
	return rest
}

// room is the directory of the mirror into which what is at a path goes, without what of it was brought before.
func (m *mirror) room(v, p string) (*os.Root, error) {
	root, rel := m.roots[v], strings.TrimPrefix(p, v+"/")
	if p == v {
		names, err := fs.ReadDir(root.FS(), ".")
		for _, n := range names {
			err = errors.Join(err, root.RemoveAll(n.Name()))
		}
		if err != nil {
			return nil, err
		}
		return root.OpenRoot(".")
	}
	if err := root.RemoveAll(rel); err != nil {
		return nil, err
	}
	return root.OpenRoot(path.Dir(rel))
}
