package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/inroot"
)

// DefaultDirs are the directories in which specs lie: those that administrators write, then those that programs
// write at each boot. Of one device in both, the latter counts.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi"}

// Cache holds the specs of some directories. Each use looks at the directories again and reads the files that
// have changed, so it needs no watching and is never behind them. All methods may be called concurrently.
type Cache struct {
	host Host
	dirs []string
	skip func(path string) bool // nil skips no file

	mu       sync.Mutex
	files    map[string]*file
	devices  map[string]*Device
	problems []Problem
	clashes  map[string]error // by device name
}

// Device is a device of a spec, under its qualified name.
type Device struct {
	Name string
	Spec *Spec

	index int // in the spec's list
}

// Edits is a copy of what the device itself does to a container, without what its spec does for all its devices.
func (d *Device) Edits() *Edits { return Append(nil, d.edits()) }

func (d *Device) edits() *Edits { return &d.Spec.doc.Devices[d.index].ContainerEdits }

// Problem is a spec file or directory that cannot be used, or not wholly.
type Problem struct {
	Path string
	Err  error // one line, which names the file too
}

// file is a spec file as it was read last.
type file struct {
	stamp stamp
	spec  *Spec
	err   error
}

// stamp changes whenever a file does.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// NewCache makes a cache of the host's spec directories, later ones before earlier ones. Without any they are
// DefaultDirs. Directories that are not there are empty.
func NewCache(host Host, dirs ...string) *Cache {
	if len(dirs) == 0 {
		dirs = DefaultDirs
	}
	return &Cache{host: host, dirs: slices.Clone(dirs)}
}

// Without is a cache of the same directories that looks at no file of which skip says so.
func (c *Cache) Without(skip func(path string) bool) *Cache {
	return &Cache{host: c.host, dirs: slices.Clone(c.dirs), skip: skip}
}

// Dirs are the directories of the cache, in order of increasing priority.
func (c *Cache) Dirs() []string { return slices.Clone(c.dirs) }

// Devices are the qualified names of all devices, sorted.
func (c *Cache) Devices() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return slices.Sorted(maps.Keys(c.devices))
}

// Device finds a device by its qualified name.
func (c *Cache) Device(name string) (*Device, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	d, ok := c.devices[name]
	return d, ok
}

// Clash is why Device does not find a device that is there: two specs of one directory describe it. nil if none do.
func (c *Cache) Clash(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return c.clashes[name]
}

// Specs are the specs that could be read, in order of increasing priority, then by path.
func (c *Cache) Specs() []*Spec {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	var specs []*Spec
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		if s := c.files[path].spec; s != nil {
			specs = append(specs, s)
		}
	}
	slices.SortStableFunc(specs, func(a, b *Spec) int { return a.Priority - b.Priority })
	return specs
}

// Vendors are the vendors of all specs, sorted.
func (c *Cache) Vendors() []string { return c.each(func(s *Spec) string { return s.Vendor }) }

// Classes are the device classes of all specs, sorted.
func (c *Cache) Classes() []string { return c.each(func(s *Spec) string { return s.Class }) }

func (c *Cache) each(of func(*Spec) string) []string {
	set := map[string]bool{}
	for _, s := range c.Specs() {
		set[of(s)] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// Problems are the files that could not be read, and those that describe the same device as another of the same
// priority, of which then none counts.
func (c *Cache) Problems() []Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	return slices.Clone(c.problems)
}

// Resolve finds what the named devices together do to a container: for each device, in order, first what its
// spec does for all of its devices, once, then its own edits. A name that occurs again adds nothing.
//
// One unknown name is ErrNotFound, and nothing is returned but the unknown names.
func (c *Cache) Resolve(names ...string) (*Edits, []string, error) {
	devices, unresolved, err := c.find(names)
	if err != nil {
		return nil, unresolved, err
	}
	edits, specs := &Edits{}, map[*Spec]bool{}
	for _, d := range devices {
		if !specs[d.Spec] {
			specs[d.Spec] = true
			Append(edits, &d.Spec.doc.ContainerEdits)
		}
		Append(edits, d.edits())
	}
	return edits, nil, nil
}

// Inject edits an OCI spec for the named devices, wholly or, on an error, not at all. The names that are not
// known are returned beside the error.
func (c *Cache) Inject(spec *oci.Spec, names ...string) ([]string, error) {
	if spec == nil {
		return names, errors.New("inject CDI devices: there is no OCI spec")
	}
	edits, unresolved, err := c.Resolve(names...)
	if err != nil {
		return unresolved, err
	}
	return nil, Apply(spec, edits, c.host)
}

// find looks names up, each once.
func (c *Cache) find(names []string) (devices []*Device, unresolved []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refresh()
	seen := map[string]bool{}
	var errs []error
	for _, name := range names {
		d, ok := c.devices[name]
		switch {
		case !ok:
			unresolved = append(unresolved, name)
			if !seen[name] {
				errs = append(errs, c.notFound(name))
			}
		case !seen[name]:
			devices = append(devices, d)
		}
		seen[name] = true
	}
	switch len(errs) {
	case 0:
		return devices, nil, nil
	case 1:
		return nil, unresolved, errs[0]
	default: // one line for all
		text := make([]string, len(errs))
		for i, e := range errs {
			text[i] = e.Error()
		}
		return nil, unresolved, &joined{strings.Join(text, "; "), errs}
	}
}

// joined is errors.Join in one line.
type joined struct {
	text string
	errs []error
}

func (j *joined) Error() string   { return j.text }
func (j *joined) Unwrap() []error { return j.errs }

// notFound says why a name resolves to nothing.
func (c *Cache) notFound(name string) error {
	if _, err := ParseName(name); err != nil {
		return err
	}
	if err := c.clashes[name]; err != nil {
		return err
	}
	kind, _, _ := strings.Cut(name, "=")
	var same []string
	for _, d := range slices.Sorted(maps.Keys(c.devices)) {
		if strings.HasPrefix(d, kind+"=") {
			same = append(same, d)
		}
	}
	why := fmt.Sprintf("no spec in %s describes %s devices", strings.Join(c.dirs, ", "), kind)
	if n := len(same); n > 8 {
		why = fmt.Sprintf("there are %s, … (%d)", strings.Join(same[:8], ", "), n)
	} else if n > 0 {
		why = "there are " + strings.Join(same, ", ")
	}
	if len(c.problems) > 0 {
		why += fmt.Sprintf("; and %v", c.problems[0].Err)
	}
	return fmt.Errorf("CDI device %s: %w: %s", name, berth.ErrNotFound, why)
}

// refresh looks at the directories, reads what has changed, and decides which device counts.
func (c *Cache) refresh() {
	old := c.files
	c.files, c.devices, c.clashes, c.problems = map[string]*file{}, map[string]*Device{}, map[string]error{}, nil
	_ = scan(c.host, c.dirs, func(path string, priority int, root *inroot.Root, err error) error {
		f := &file{err: err}
		if err == nil {
			if c.skip != nil && c.skip(path) {
				return nil
			}
			if f = load(root, path, priority, old[path]); vanished(root, path, f.err) {
				return nil
			}
			c.files[path] = f
		}
		if f.err != nil {
			c.problem(path, f.err)
		} else {
			c.add(f.spec)
		}
		return nil
	})
	for name := range c.clashes {
		delete(c.devices, name)
	}
}

func (c *Cache) problem(path string, err error) { c.problems = append(c.problems, Problem{path, err}) }

func (c *Cache) add(s *Spec) {
	for i := range s.doc.Devices {
		name := s.name(i)
		if other := c.devices[name]; other != nil && other.Spec.Priority == s.Priority {
			err := fmt.Errorf("CDI device %s: %w: both %s and %s describe it; remove it from one", name, berth.ErrConflict, other.Spec.Path, s.Path)
			c.clashes[name] = err
			c.problem(other.Spec.Path, err)
			c.problem(s.Path, err)
			continue
		}
		// Of a higher priority: what clashed below it counts no more.
		delete(c.clashes, name)
		c.devices[name] = &Device{Name: name, Spec: s, index: i}
	}
}

// load reads a file, unless it is as it was.
func load(root *inroot.Root, path string, priority int, old *file) *file {
	st, err := root.Stat(path)
	if err != nil {
		return &file{err: fmt.Errorf("CDI spec %s: %w", path, err)}
	}
	now := stamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	if old != nil && old.stamp == now && old.spec != nil {
		return old
	}
	f := &file{stamp: now}
	f.spec, f.err = readSpec(root, path, priority)
	return f
}

// vanished reports whether a file could not be read because it was removed since its directory was. A link that leads nowhere is there.
func vanished(root *inroot.Root, path string, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = root.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// Scan reads the spec files of directories, those of lower priority first, in each by name, and gives each to
// found with the error of reading it. An error that found returns ends the scan.
func Scan(host Host, dirs []string, found func(path string, priority int, spec *Spec, err error) error) error {
	return scan(host, dirs, func(path string, priority int, root *inroot.Root, err error) error {
		var spec *Spec
		if err == nil {
			if spec, err = readSpec(root, path, priority); vanished(root, path, err) {
				return nil
			}
		}
		return found(path, priority, spec, err)
	})
}

func scan(host Host, dirs []string, found func(path string, priority int, root *inroot.Root, err error) error) error {
	root, err := host.open()
	if err != nil {
		return found(host.Root, 0, nil, err)
	}
	defer root.Close()
	for priority, dir := range dirs {
		entries, err := root.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			// One that cannot be read hides nothing of the others.
			if err := found(dir, priority, nil, fmt.Errorf("CDI specs: %w", err)); err != nil {
				return err
			}
			continue
		}
		for _, e := range entries {
			if ext := filepath.Ext(e.Name()); e.IsDir() || ext != ".json" && ext != ".yaml" {
				continue
			}
			if err := found(filepath.Join(dir, e.Name()), priority, root, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
