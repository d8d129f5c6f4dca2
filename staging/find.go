package staging

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// maxLooked and maxFollowed bound how many names one pattern is compared with, and how many links it
// follows: links make trees in which patterns match more names than there are files.
const (
	maxLooked   = 5_000_000
	maxFollowed = 100_000
)

// finder matches one pattern against a view.
type finder struct {
	ctx              context.Context // of one call
	view             *View
	accept           func(*node) bool
	looked, followed int
	found            []string
}

// find lists the container paths that match a pattern, sorted, of nodes that accept takes. Links are
// followed, but not by **.
func (v *View) find(ctx context.Context, p *pattern, accept func(*node) bool) ([]string, error) {
	f := &finder{ctx: ctx, view: v, accept: accept}
	for _, segments := range p.variants {
		top, err := v.top()
		if err != nil {
			return nil, err
		}
		err = f.dir(top, "/", segments, []int{0}, 0)
		top.close()
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(f.found)
	return slices.Compact(f.found), nil
}

// dir matches what a directory holds. at is its path as it was matched; states are the segments that may
// come next.
func (f *finder) dir(dir *node, at string, segments []segment, states []int, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: %w: more than %d directories deep", at, berth.ErrInvalid, maxDepth)
	}
	states = closure(segments, states)
	names, err := f.names(dir, segments, states)
	if err != nil {
		return err
	}
	for _, name := range names {
		if f.looked++; f.looked > maxLooked {
			return fmt.Errorf("%w: more than %d names to compare with", berth.ErrExhausted, maxLooked)
		}
		if f.looked&1023 == 0 && f.ctx.Err() != nil {
			return context.Cause(f.ctx)
		}
		if err := f.name(dir, name, at, segments, states, depth); err != nil {
			return err
		}
	}
	return nil
}

// names lists the names that may match: a literal needs no look at the directory, which may be unreadable.
func (f *finder) names(dir *node, segments []segment, states []int) ([]string, error) {
	var literals []string
	for _, s := range states {
		if segments[s].deep || segments[s].tokens != nil {
			return f.view.names(dir)
		}
		literals = append(literals, segments[s].literal)
	}
	slices.Sort(literals)
	return slices.Compact(literals), nil
}

func (f *finder) name(dir *node, name, at string, segments []segment, states []int, depth int) error {
	var ends, below bool
	var plain, deep []int // the states of what is below: a link's, and those that only a directory itself has
	for _, s := range states {
		switch seg := &segments[s]; {
		case seg.deep && !strings.HasPrefix(name, "."):
			deep = append(deep, s)
		case seg.match(name) && s == len(segments)-1:
			ends = true
		case seg.match(name):
			plain = append(plain, s+1)
		}
	}
	below = len(plain)+len(deep) > 0
	if !ends && !below {
		return nil
	}
	p := path.Join(at, name)
	n, err := f.view.child(dir, name)
	if err != nil {
		return ignoreMissing(err)
	}
	defer func() { n.close() }()
	link := n.isLink()
	if link && (ends || len(plain) > 0) {
		if f.followed++; f.followed > maxFollowed {
			return fmt.Errorf("%w: more than %d symbolic links to follow", berth.ErrExhausted, maxFollowed)
		}
		target, err := f.view.resolve(n.path, true)
		switch {
		case err == nil:
			n.close()
			n = target
		case !ends:
			return ignoreMissing(err)
		}
	}
	// A link that leads nowhere is found: whoever collects it says what is wrong with it.
	if ends && (n.isLink() || f.accept(n)) {
		f.found = append(f.found, p)
	}
	if !link {
		plain = append(plain, deep...)
	}
	if !n.isDir() || len(plain) == 0 {
		return nil
	}
	slices.Sort(plain)
	return f.dir(n, p, segments, slices.Compact(plain), depth+1)
}

// closure adds the states that are reached without a name: ** may be no directory at all.
func closure(segments []segment, states []int) []int {
	var out []int
	for _, s := range states {
		for ; ; s++ {
			if !slices.Contains(out, s) {
				out = append(out, s)
			}
			if !segments[s].deep {
				break
			}
		}
	}
	return out
}

func ignoreMissing(err error) error {
	if errors.Is(err, errNotThere) || errors.Is(err, errOutside) || errors.Is(err, errCycle) {
		return nil
	}
	return err
}
