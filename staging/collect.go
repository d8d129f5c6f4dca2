package staging

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// CollectOptions say how outputs are written. The zero value works.
type CollectOptions struct {
	// UID and GID own what is written, new parent directories too; 0 is the process's own. In a directory
	// with the set-group-ID bit, files keep that directory's group. Where files cannot be given away they
	// stay the process's own, and Warn is told.
	UID, GID int
	// Writable are the real paths of what of this host the task could write to, from before it ran. A place in one, by
	// whatever way, is opened from there, and a link in it or on the way is an error (ErrConflict): the task may have put it there.
	Writable []string
	// Sync: what is written has reached the disk before it has its name.
	Sync bool
	// Journal is told of each temporary file or directory before it is made. What it was told of and is
	// still there after a crash is removed by RemoveLeftovers. Its error ends the output.
	Journal func(tmp string) error
	// Warn is told, in one line, what was left out or is otherwise than it should: pipes, sockets, devices and
	// links that lead nowhere, out of the view or in a circle, in a directory; owners.
	Warn func(string)
}

// Collect copies outputs out of a view to where their URLs say, and lists the files written, a directory's
// one by one. A failed output does not keep the others from being collected; the error then has a line for
// each. The kinds: ErrNotFound (not produced), ErrInvalid (not of the declared type, an output
// that is itself a link that leads nowhere, out of the view or in a circle), ErrUnsupported (a URL scheme), ErrDenied, ErrConflict (a directory where a
// file is to be written, or the other way round) and ErrExhausted (disk full).
//
// An output appears whole or not at all: it is written beside its place, as .NAME.berth-XXXXXX.tmp, and
// then renamed. Where a directory is there already, the output is merged into it, file by file, each of
// them whole; a file whose Type is not declared goes into it, as with cp. Modes (less set-user-ID and set-group-ID) and modification times are kept.
//
// A pattern takes only files if the output's Type is File or it has a **, only directories if Type is Directory,
// else both. One that matches nothing was not produced, like a file that is not there, unless the output is Optional.
func Collect(ctx context.Context, view *View, outputs []berth.Output, opts CollectOptions) ([]berth.OutputFile, error) {
	t, err := newTrees(opts.Writable)
	if err != nil {
		return nil, fmt.Errorf("outputs: %w", err)
	}
	c := &collector{view: view, opts: opts, trees: t}
	var errs []error
	for _, o := range outputs {
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("output %s: %w", o.Path, context.Cause(ctx)))
			break
		}
		if err := c.output(ctx, o); err != nil {
			errs = append(errs, err)
		}
	}
	return c.files, errors.Join(errs...)
}

type collector struct {
	view  *View
	opts  CollectOptions
	trees *trees
	files []berth.OutputFile
	kept  bool // it was said that files cannot be given away
}

func (c *collector) warn(format string, args ...any) {
	if c.opts.Warn != nil {
		c.opts.Warn(fmt.Sprintf(format, args...))
	}
}

func (c *collector) output(ctx context.Context, o berth.Output) error {
	if err := CheckOutput(o); err != nil {
		return err
	}
	if IsPattern(o.Path) {
		return c.matches(ctx, o)
	}
	_, err := c.one(ctx, o, path.Clean(o.Path), o.URL)
	return err
}

// CheckOutput reports whether an output can be collected, as far as that can be said before it is there.
func CheckOutput(o berth.Output) error {
	if _, local, err := HostPath(o.URL); err != nil {
		return fmt.Errorf("output %s: %w", o.Path, err)
	} else if !local {
		return fmt.Errorf("output %s: %w: scheme %s; outputs go to file:// URLs and absolute paths",
			o.Path, berth.ErrUnsupported, schemeOf(o.URL))
	}
	if o.Type != "" && o.Type != berth.File && o.Type != berth.Directory {
		return fmt.Errorf("output %s: %w: type %q is neither FILE nor DIRECTORY", o.Path, berth.ErrInvalid, o.Type)
	}
	if IsPattern(o.Path) {
		if err := CheckPattern(o.Path); err != nil {
			return fmt.Errorf("output %s: %w", o.Path, err)
		}
		return nil
	}
	if err := checkContainerPath(o.Path); err != nil {
		return fmt.Errorf("output %s: %w", o.Path, err)
	}
	return nil
}

// matches collects what a pattern matches.
func (c *collector) matches(ctx context.Context, o berth.Output) error {
	p, err := compile(o.Path)
	if err != nil {
		return fmt.Errorf("output %s: %w", o.Path, err)
	}
	found, err := c.view.find(ctx, p, func(n *node) bool {
		switch {
		case o.Type == berth.Directory:
			return n.isDir()
		case o.Type == berth.File || p.deep:
			return n.isFile()
		default:
			return n.isFile() || n.isDir()
		}
	})
	if err != nil {
		return c.explain(o.Path, err)
	}
	prefix := o.PathPrefix
	if prefix == "" {
		prefix = literalPrefix(o.Path)
	}
	if len(found) == 0 {
		return c.noMatch(ctx, o, prefix)
	}
	var errs []error
	var dirs []string // that were collected: what is in them was, too
	for _, m := range found {
		if within(m, dirs) {
			continue
		}
		rest, ok := strings.CutPrefix(m, prefix)
		if !ok {
			errs = append(errs, fmt.Errorf("output %s: %w: %s does not begin with the path prefix %s", o.Path, berth.ErrInvalid, m, prefix))
			continue
		}
		dir, err := c.one(ctx, berth.Output{Path: m}, m, join(o.URL, rest))
		if dir {
			dirs = append(dirs, m)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// noMatch collects the file that has the pattern itself as its name, as a shell would, if there is one.
func (c *collector) noMatch(ctx context.Context, o berth.Output, prefix string) error {
	p := path.Clean(o.Path)
	if n, err := c.view.resolve(p, true); err == nil {
		n.close()
	} else {
		if o.Optional {
			return nil
		}
		return &fault{text: "output " + o.Path + " was not produced: nothing matches", kind: berth.ErrNotFound}
	}
	rest := strings.TrimPrefix(p, prefix)
	_, err := c.one(ctx, berth.Output{Path: p, Type: o.Type}, p, join(o.URL, rest))
	return err
}

// literalPrefix is the directory in which a pattern begins to be one.
func literalPrefix(pattern string) string {
	dir := "/"
	for _, s := range splitPath(pattern) {
		if IsPattern(s) {
			break
		}
		dir = path.Join(dir, s)
	}
	return dir
}

func within(p string, dirs []string) bool {
	for _, d := range dirs {
		if strings.HasPrefix(p, strings.TrimSuffix(d, "/")+"/") {
			return true
		}
	}
	return false
}

// one collects the file or directory at a container path, and says whether it is a directory.
func (c *collector) one(ctx context.Context, o berth.Output, from, location string) (dir bool, err error) {
	dest, _, err := HostPath(location)
	if err != nil {
		return false, fmt.Errorf("output %s: %w", o.Path, err)
	}
	n, err := c.view.resolve(from, true)
	if err != nil {
		if o.Optional && c.notProduced(from, err) {
			return false, nil
		}
		return false, c.explain(from, err)
	}
	defer n.close()
	switch {
	case n.isDir() && o.Type != berth.File:
		return true, c.directory(ctx, n, from, location, dest)
	case n.isFile() && o.Type != berth.Directory:
		if strings.HasSuffix(location, "/") || o.URL != "" && o.Type == "" && holdsFile(dest) {
			location, dest = join(location, path.Base(from)), path.Join(dest, path.Base(from))
		}
		if o.URL != "" { // the user named the file; of links only those are followed that no task could have put there
			to, err := c.trees.target(dest)
			if err != nil {
				return false, destFault(from, dest, err)
			}
			dest = to
		}
		return false, c.file(ctx, n, from, location, dest)
	case o.Type == berth.Directory:
		return false, fmt.Errorf("output %s: %w: it is %s, and no directory", from, berth.ErrInvalid, n.kind())
	default:
		return false, fmt.Errorf("output %s: %w: it is %s, and no file", from, berth.ErrInvalid, n.kind())
	}
}

// notProduced reports whether there is nothing at a path, not even a link that leads nowhere.
func (c *collector) notProduced(p string, err error) bool {
	if !errors.Is(err, errNotThere) && !errors.Is(err, errOutside) {
		return false
	}
	n, err := c.view.resolve(p, false)
	if err != nil {
		return true
	}
	n.close()
	return false
}

// explain says what is wrong with a container path.
func (c *collector) explain(p string, err error) error {
	switch {
	case errors.Is(err, errNotThere), errors.Is(err, errOutside), errors.Is(err, errCycle):
		if c.notProduced(p, err) {
			return &fault{text: "output " + p + " was not produced", kind: berth.ErrNotFound}
		}
		return linkFault(p, err)
	case errors.Is(err, berth.ErrInvalid), errors.Is(err, berth.ErrExhausted):
		return fmt.Errorf("output %s: %w", p, err)
	}
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("output %s: %w: it cannot be read: %w", p, kind, err)
	}
	return fmt.Errorf("output %s: %w", p, err)
}

// linkFault says where a symbolic link leads to.
func linkFault(p string, err error) error {
	return &fault{text: fmt.Sprintf("output %s: the symbolic link %s", p, leads(err)), kind: berth.ErrInvalid, cause: err}
}

// leads says where a link leads to that cannot be followed.
func leads(err error) string {
	switch {
	case errors.Is(err, errCycle):
		return "leads in a circle"
	case errors.Is(err, errOutside):
		return "leads " + errOutside.Error()
	}
	return "leads nowhere"
}

// file collects one file.
func (c *collector) file(ctx context.Context, n *node, from, location, dest string) error {
	p, err := c.begin(dest, false)
	if err != nil {
		return destFault(from, dest, err)
	}
	defer p.close()
	size, err := p.file(ctx, n)
	if err == nil {
		err = p.publishFile()
	}
	if err != nil {
		return errors.Join(destFault(from, dest, err), p.abandon())
	}
	c.files = append(c.files, berth.OutputFile{URL: location, Path: from, Size: size})
	return nil
}

// directory collects a directory with all that is in it.
func (c *collector) directory(ctx context.Context, n *node, from, location, dest string) error {
	p, err := c.begin(dest, true)
	if err != nil {
		return destFault(from, dest, err)
	}
	defer p.close()
	t := &tree{ctx: ctx, c: c, place: p, from: from}
	err = t.build(n)
	if err == nil {
		err = p.publishDir()
	}
	if err != nil {
		return errors.Join(destFault(from, dest, err), p.abandon())
	}
	for _, f := range t.files {
		c.files = append(c.files, berth.OutputFile{URL: join(location, f.rel), Path: path.Join(from, f.rel), Size: f.size})
	}
	return nil
}

// destFault says why an output could not be written, unless err says so already.
func destFault(from, dest string, err error) error {
	if _, whole := errors.AsType[*fault](err); whole {
		return err
	}
	kind := kindOf(err)
	what := reason(err)
	switch {
	case kind == nil:
		return fmt.Errorf("output %s: write %s: %w", from, dest, err)
	case errors.Is(err, unix.EFBIG):
		what = "the file is too large (" + what + ")"
	case errors.Is(kind, berth.ErrExhausted):
		what = "the disk is full (" + what + ")"
	case errors.Is(kind, berth.ErrDenied):
		what = "its directory is not writable (" + what + ")"
	}
	return &fault{text: fmt.Sprintf("output %s: cannot write %s: %s", from, dest, what), kind: kind, cause: err}
}
