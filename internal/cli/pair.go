package cli

import (
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth/tes/document"
)

// pair is the value of --input, --output, --mount, --volume and --tmpfs.
type pair struct {
	src, dst string
	options  map[string]string // of the long form, and "ro" of the short one
}

// The keys of the long form, and what they are called here.
var pairKeys = map[string]string{
	"src": "src", "source": "src", "host": "src", "url": "src",
	"dst": "dst", "destination": "dst", "target": "dst", "container": "dst", "path": "dst",
}

// parsePair reads HOST:CONTAINER, split at the last colon that a slash follows and that is not part of "://",
// or the long form src=HOST,dst=CONTAINER, with further options. options name those that are known; one with
// a "!" at its end takes no value, and may also end the short form, after a colon.
func parsePair(s string, options ...string) (pair, error) {
	if isLong(s) {
		return parseLong(s, options)
	}
	p := pair{options: map[string]string{}}
	rest := s
	for _, o := range options {
		word, bare := strings.CutSuffix(o, "!")
		if cut, ok := strings.CutSuffix(rest, ":"+word); ok && bare {
			rest, p.options[word] = cut, "true"
		}
	}
	at := -1
	for i := range len(rest) - 1 {
		if rest[i] == ':' && rest[i+1] == '/' && !strings.HasPrefix(rest[i:], "://") {
			at = i
		}
	}
	if at < 0 {
		return p, invalid("%q: no colon with an absolute container path after it; write HOST:CONTAINER, or src=HOST,dst=CONTAINER", s)
	}
	p.src, p.dst = rest[:at], rest[at+1:]
	if p.src == "" {
		return p, invalid("%q: there is nothing before the colon; write HOST:CONTAINER", s)
	}
	if i := strings.IndexByte(p.dst, ':'); i >= 0 {
		known := []string{"nothing"}
		for _, o := range options {
			if word, bare := strings.CutSuffix(o, "!"); bare {
				known = append(known, ":"+word)
			}
		}
		return p, invalid("%q: %q after the container path: there may be %s; a path with a colon needs the long form, src=HOST,dst=CONTAINER", s, p.dst[i:], strings.Join(known, " or "))
	}
	return p, nil
}

// isLong reports whether s begins with a key of the long form.
func isLong(s string) bool {
	key, _, ok := strings.Cut(s, "=")
	return ok && pairKeys[key] != ""
}

func parseLong(s string, options []string) (pair, error) {
	p := pair{options: map[string]string{}}
	seen := map[string]bool{}
	for rest := s; rest != ""; {
		key, value, bare, after, err := nextOption(rest, options)
		if err != nil {
			return p, invalid("%q: %v", s, err)
		}
		name := key
		if known := pairKeys[key]; known != "" {
			name = known
		}
		switch {
		case seen[name]:
			return p, invalid("%q: %s is given twice", s, key)
		case name == "src" && !bare:
			p.src = value
		case name == "dst" && !bare:
			p.dst = value
		case slices.Contains(options, key+"!"):
			if bare {
				value = "true"
			}
			if _, err := strconv.ParseBool(value); err != nil {
				return p, invalid("%q: %s is true or false, not %q", s, key, value)
			}
			p.options[key] = value
		case slices.Contains(options, key) && !bare:
			p.options[key] = value
		case bare:
			return p, invalid("%q: %q has no value; write KEY=VALUE", s, key)
		default:
			return p, invalid("%q: there is no key %q%s", s, key, document.DidYouMean(key, longKeys(options)))
		}
		seen[name], rest = true, after
	}
	return p, nil
}

func longKeys(options []string) []string {
	keys := []string{"src", "dst"}
	for _, o := range options {
		keys = append(keys, strings.TrimSuffix(o, "!"))
	}
	return keys
}

// nextOption takes KEY=VALUE or KEY off the front of s. A value ends at a comma that a known key follows, so
// that names may hold commas; one in double quotes may hold anything.
func nextOption(s string, options []string) (key, value string, bare bool, after string, err error) {
	if i := strings.IndexAny(s, ",="); i < 0 || s[i] == ',' {
		key, after, _ = strings.Cut(s, ",")
		return key, "", true, after, nil
	}
	key, rest, _ := strings.Cut(s, "=")
	if strings.HasPrefix(rest, `"`) {
		quoted, err := strconv.QuotedPrefix(rest)
		if err == nil && (len(rest) == len(quoted) || rest[len(quoted)] == ',') {
			value, err = strconv.Unquote(quoted)
			return key, value, false, strings.TrimPrefix(rest[len(quoted):], ","), err
		}
	}
	for i := range rest {
		if rest[i] == ',' && (keyFollows(rest[i+1:], options) || i == len(rest)-1) {
			return key, rest[:i], false, rest[i+1:], nil
		}
	}
	return key, rest, false, "", nil
}

// keyFollows reports whether s begins with a known key.
func keyFollows(s string, options []string) bool {
	word := s
	if i := strings.IndexAny(s, ",="); i >= 0 {
		word = s[:i]
	}
	if len(word) == len(s) || s[len(word)] == ',' {
		return slices.Contains(options, word+"!")
	}
	return pairKeys[word] != "" || slices.Contains(options, word) || slices.Contains(options, word+"!")
}

// on reports whether an option without a value was given, and not as false.
func (p pair) on(option string) bool {
	b, _ := strconv.ParseBool(p.options[option])
	return b
}
