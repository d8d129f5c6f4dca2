package staging

import (
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/berth-project/berth"
)

// HostPath is the path on this host that a location names: an absolute path as it stands, or a file URL
// (file:///p, file://localhost/p or file:/p, percent-decoded). local is false for the URLs of other
// schemes. The path is clean. The error wraps ErrInvalid, or ErrUnsupported for a file URL of another host.
func HostPath(location string) (p string, local bool, err error) {
	if strings.HasPrefix(location, "/") {
		return cleanHost(location, location)
	}
	scheme := schemeOf(location)
	if scheme == "" {
		return "", false, fmt.Errorf("%q: %w: neither a URL nor an absolute path", location, berth.ErrInvalid)
	}
	if scheme != "file" {
		return "", false, nil
	}
	rest := location[len("file:"):]
	if after, ok := strings.CutPrefix(rest, "//"); ok {
		host, p, _ := strings.Cut(after, "/")
		if host != "" && host != "localhost" {
			return "", false, fmt.Errorf("%s: %w: it names the host %q; file URLs are of this host: file:///path",
				location, berth.ErrUnsupported, host)
		}
		rest = "/" + p
	}
	decoded, err := url.PathUnescape(rest)
	if err != nil {
		return "", false, fmt.Errorf("%s: %w: %w (write %% itself as %%25)", location, berth.ErrInvalid, err)
	}
	return cleanHost(location, decoded)
}

func cleanHost(location, p string) (string, bool, error) {
	if strings.IndexByte(p, 0) >= 0 {
		return "", false, fmt.Errorf("%q: %w: a path has no NUL", location, berth.ErrInvalid)
	}
	if !strings.HasPrefix(p, "/") {
		return "", false, fmt.Errorf("%q: %w: not an absolute path", location, berth.ErrInvalid)
	}
	return path.Clean(p), true, nil
}

// schemeOf is the scheme of a URL in lower case; "" for anything else.
func schemeOf(location string) string {
	i := strings.Index(location, ":")
	if i <= 0 {
		return ""
	}
	s := strings.ToLower(location[:i])
	for j := range len(s) {
		c := s[j]
		letter := c >= 'a' && c <= 'z'
		if !letter && (j == 0 || (c < '0' || c > '9') && c != '+' && c != '-' && c != '.') {
			return ""
		}
	}
	if s != "file" && !strings.HasPrefix(location[i:], "://") {
		return ""
	}
	return s
}

// join appends a relative path to a location, percent-encoded where the location is a URL.
func join(location, rel string) string {
	if schemeOf(location) != "" {
		rel = (&url.URL{Path: rel}).EscapedPath()
	}
	return strings.TrimRight(location, "/") + "/" + strings.TrimLeft(rel, "/")
}

// checkContainerPath reports whether p can be a path in a container: absolute, without "..".
func checkContainerPath(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return fmt.Errorf("container path %q: %w: it is not absolute", p, berth.ErrInvalid)
	case strings.IndexByte(p, 0) >= 0:
		return fmt.Errorf("container path %q: %w: a path has no NUL", p, berth.ErrInvalid)
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == ".." {
			return fmt.Errorf("container path %q: %w: it has a \"..\"", p, berth.ErrInvalid)
		}
		if len(c) > 255 {
			return fmt.Errorf("container path %q: %w: a name has at most 255 bytes", p, berth.ErrInvalid)
		}
	}
	return nil
}
