package staging

import "context"

// Find lists what a pattern matches in a view, files and directories.
func Find(ctx context.Context, v *View, pattern string) ([]string, error) {
	p, err := compile(pattern)
	if err != nil {
		return nil, err
	}
	return v.find(ctx, p, func(*node) bool { return true })
}

// Match matches one name with one segment of a pattern.
func Match(segment, name string) bool {
	s := compileSegment(segment)
	return s.match(name)
}

// ParseMount reads a line of /proc/self/mountinfo: the file system, where in it a mount begins, and where it lies.
func ParseMount(line string) (device, root, point string, ok bool) {
	_, m, ok := parseMount(line)
	return m.device, m.root, m.point, ok
}

// WithinByInode is Within where a mount's file system says nothing.
func WithinByInode(name string, writable []string) (string, error) {
	t, err := newTrees(writable)
	if err != nil {
		return "", err
	}
	t.parts = nil
	e, err := t.enter(name, true)
	if e == nil {
		return "", err
	}
	e.close()
	return e.tree, nil
}
