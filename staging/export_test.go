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
