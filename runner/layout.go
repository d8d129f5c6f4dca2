package runner

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

// layout says where a task's container paths lie: which volumes its sandbox gets, and where each output
// and each stream is found. It is computed from the task alone, so that a process that continues a task
// computes the same.
type layout struct {
	volumes []berth.Volume // declared and implied, sorted by path
	places  []place        // everything mounted, sorted by path
	// rooted are the outputs, by index, that lie in no mount: they are read out of the root of each
	// container after its end.
	rooted []int
	// streams are the stdout and stderr files that lie in no volume: what the log holds is put there after
	// the step.
	streams []stream
}

// place is one mounted path.
type place struct {
	path  string
	kind  placeKind
	index int    // of the input, for placeInput
	host  string // source, for placeMount
	ro    bool   // for placeMount
}

type placeKind int

const (
	placeVolume placeKind = iota
	placeInput
	placeMount
	placeTmpfs
)

// stream is the stdout or stderr file of a step that lies in no volume.
type stream struct {
	step   int
	path   string
	stderr bool
	mount  place // it lies in; of path "" where it lies in no mount
}

func (s stream) name() string {
	if s.stderr {
		return "stderr"
	}
	return "stdout"
}

// newLayout computes the layout of a task whose paths Check found absolute and clean.
func newLayout(t *berth.Task) (*layout, error) {
	l := &layout{volumes: slices.Clone(t.Volumes)}
	for _, v := range t.Volumes {
		l.places = append(l.places, place{path: v.Path, kind: placeVolume})
	}
	for i, in := range t.Inputs {
		l.places = append(l.places, place{path: path.Clean(in.Path), kind: placeInput, index: i})
	}
	for _, s := range t.Steps {
		for _, m := range s.Mounts {
			kind := placeMount
			if m.Type == berth.MountTmpfs {
				kind = placeTmpfs
			}
			l.places = append(l.places, place{path: path.Clean(m.Target), kind: kind, host: m.Source, ro: m.ReadOnly})
		}
	}
	implied := []string{}
	for i, o := range t.Outputs {
		dir, err := outputDir(o)
		if err != nil {
			return nil, err
		}
		p, ok := l.at(dir)
		switch {
		case ok && p.kind == placeTmpfs:
			return nil, fmt.Errorf("output %s: %w: it lies in the tmpfs %s, which ends with its step", o.Path, berth.ErrInvalid, p.path)
		case ok:
		case l.isPlace(path.Clean(o.Path)): // the output is itself mounted
		case !mountable(dir):
			if staging.IsPattern(o.Path) {
				return nil, fmt.Errorf("output %s: %w: a pattern cannot match in %s; let the task write below a directory of its own", o.Path, berth.ErrUnsupported, dir)
			}
			l.rooted = append(l.rooted, i)
		default:
			implied = append(implied, dir)
		}
	}
	for i, s := range t.Steps {
		for _, st := range []stream{{step: i, path: s.Stdout}, {step: i, path: s.Stderr, stderr: true}} {
			dir, err := l.stream(st)
			if err != nil {
				return nil, err
			}
			if dir != "" {
				implied = append(implied, dir)
			}
		}
	}
	for _, dir := range outermost(implied) {
		l.volumes = append(l.volumes, berth.Volume{Path: dir, CopyUp: true})
		l.places = append(l.places, place{path: dir, kind: placeVolume})
	}
	slices.SortFunc(l.volumes, func(a, b berth.Volume) int { return cmp.Compare(a.Path, b.Path) })
	slices.SortStableFunc(l.places, func(a, b place) int { return cmp.Compare(a.path, b.path) })
	return l, nil
}

// stream finds out where the file of a stream is to lie. It returns the directory that must be a volume for
// it, or "".
func (l *layout) stream(s stream) (volume string, err error) {
	if s.path == "" {
		return "", nil
	}
	s.path = path.Clean(s.path)
	dir := path.Dir(s.path)
	p, ok := l.at(dir)
	switch {
	case l.isPlace(s.path):
		return "", fmt.Errorf("step %d: %s %s: %w: it is itself mounted; name a file in a directory that is", s.step+1, s.name(), s.path, berth.ErrInvalid)
	case ok && p.kind == placeVolume:
		return "", nil
	case ok && p.kind == placeMount && !p.ro:
		s.mount = p
	case ok:
		return "", fmt.Errorf("step %d: %s %s: %w: nothing can be kept in %s", s.step+1, s.name(), s.path, berth.ErrInvalid, p.path)
	case mountable(dir):
		return dir, nil
	}
	l.streams = append(l.streams, s)
	return "", nil
}

// at finds the innermost mounted path that holds p. Of two at the same path, the later step's counts.
func (l *layout) at(p string) (place, bool) {
	best, found := place{}, false
	for _, c := range l.places {
		if within(p, c.path) && (!found || len(c.path) >= len(best.path)) {
			best, found = c, true
		}
	}
	return best, found
}

func (l *layout) isPlace(p string) bool {
	return slices.ContainsFunc(l.places, func(c place) bool { return c.path == p })
}

// outputDir is the directory that must outlive the containers for an output to be collected.
func outputDir(o berth.Output) (string, error) {
	p := path.Clean(o.Path)
	if staging.IsPattern(o.Path) {
		dir := "/"
		for name := range strings.SplitSeq(p[1:], "/") {
			if staging.IsPattern(name) {
				break
			}
			dir = path.Join(dir, name)
		}
		return dir, nil
	}
	if o.Type == berth.Directory {
		if p == "/" {
			return "", fmt.Errorf("output /: %w: the whole root file system cannot be an output", berth.ErrInvalid)
		}
		return p, nil
	}
	return path.Dir(p), nil
}

// mountable reports whether an implied volume may be mounted over dir. Not over the root, nor over what a
// container needs to start or what is large to copy up.
func mountable(dir string) bool {
	switch dir {
	case "/", "/usr", "/usr/local", "/opt", "/var", "/var/lib", "/run", "/boot":
		return false
	}
	for _, p := range []string{
		"/proc", "/sys", "/dev", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
		"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/share",
	} {
		if within(dir, p) {
			return false
		}
	}
	return true
}

// within reports whether p is dir or lies below it. Both are clean.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// outermost sorts dirs and leaves out those that lie in another.
func outermost(dirs []string) []string {
	slices.Sort(dirs)
	out := []string{}
	for _, d := range dirs {
		if !slices.ContainsFunc(out, func(o string) bool { return within(d, o) }) {
			out = append(out, d)
		}
	}
	return out
}
