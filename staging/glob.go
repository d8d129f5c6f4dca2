package staging

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/berth-project/berth"
)

// Bounds of a pattern. Matching costs at most the product of a name's and a segment's length for each name
// that is looked at.
const (
	maxPattern  = 4096 // bytes
	maxSegments = 256
	maxVariants = 16 // of what one pattern stands for, see pattern
)

// IsPattern reports whether the path of an output is a pattern of names: it has a *, ? or [.
func IsPattern(p string) bool { return strings.ContainsAny(p, "*?[") }

// CheckPattern reports whether an output's path can be collected: absolute, without "..", and not too
// large a pattern. The error wraps ErrInvalid.
func CheckPattern(p string) error {
	if err := checkContainerPath(p); err != nil {
		return err
	}
	_, err := compile(p)
	return err
}

// pattern is a compiled path pattern: POSIX.1-2017 section 2.13, where * ? and [...] match within a name
// and no leading period, and a backslash takes a character's meaning away. Beyond POSIX, a segment ** is
// zero or more directories, and ** within a segment crosses directories: x**y is x*y or x*/**/*y. A pattern
// of the latter kind stands for several. Braces mean nothing.
type pattern struct {
	variants [][]segment
	deep     bool // has a **
}

// segment matches one name, or, if deep, any number of directories.
type segment struct {
	deep    bool
	literal string // where tokens is nil
	tokens  []token
	dot     bool // begins with a literal period
}

// token matches a part of a name: a string, one character, or any number of them.
type token struct {
	star bool
	text string // of a literal
	set  *set   // one character of it; nil with no text and no star is any character
}

// set is a bracket expression.
type set struct {
	negated bool
	ranges  []rune // pairs
	classes []func(rune) bool
}

func compile(p string) (*pattern, error) {
	if len(p) > maxPattern {
		return nil, fmt.Errorf("pattern of %d bytes: %w: at most %d", len(p), berth.ErrInvalid, maxPattern)
	}
	out := &pattern{variants: [][]segment{nil}}
	for _, text := range splitPath(p) {
		alternatives := spread(text)
		var next [][]segment
		for _, v := range out.variants {
			for _, alt := range alternatives {
				w := append([]segment{}, v...)
				for _, s := range alt {
					seg := compileSegment(s)
					if seg.literal == "." || seg.literal == ".." {
						return nil, fmt.Errorf("pattern %q: %w: it has a %q", p, berth.ErrInvalid, seg.literal)
					}
					out.deep = out.deep || seg.deep
					if seg.deep && len(w) > 0 && w[len(w)-1].deep {
						continue
					}
					w = append(w, seg)
				}
				next = append(next, w)
			}
		}
		if out.variants = next; len(next) > maxVariants || len(next[0]) > maxSegments {
			return nil, fmt.Errorf("pattern %.60q: %w: too many parts", p, berth.ErrInvalid)
		}
	}
	for i, v := range out.variants {
		// x/** is everything below x.
		if len(v) > 0 && v[len(v)-1].deep {
			out.variants[i] = append(v, compileSegment("*"))
		}
	}
	return out, nil
}

// splitPath splits a path into its names. A backslash before a slash takes nothing away from it.
func splitPath(p string) []string {
	var out []string
	names := strings.Split(p, "/")
	for i, s := range names {
		if i < len(names)-1 && escaped(s, len(s)) {
			s = s[:len(s)-1]
		}
		if s != "" && s != "." {
			out = append(out, s)
		}
	}
	return out
}

// spread says what a segment with ** in it stands for; others stand for themselves.
func spread(s string) [][]string {
	i := strings.Index(s, "**")
	if s == "**" || i < 0 || escaped(s, i) {
		return [][]string{{s}}
	}
	left, right := s[:i]+"*", "*"+strings.TrimLeft(s[i:], "*")
	if i == 0 {
		return [][]string{{"**", right}}
	}
	return [][]string{{left + right[1:]}, {left, "**", right}}
}

func escaped(s string, i int) bool {
	n := 0
	for i--; i >= 0 && s[i] == '\\'; i-- {
		n++
	}
	return n&1 == 1
}

func compileSegment(s string) segment {
	if s == "**" {
		return segment{deep: true}
	}
	seg := segment{dot: strings.HasPrefix(s, ".") || strings.HasPrefix(s, `\.`)}
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			seg.tokens = append(seg.tokens, token{text: text.String()})
			text.Reset()
		}
	}
	wild := false
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			text.WriteByte(s[i+1])
			i += 2
			continue
		case c == '*':
			flush()
			if n := len(seg.tokens); n == 0 || !seg.tokens[n-1].star {
				seg.tokens = append(seg.tokens, token{star: true})
			}
			wild = true
		case c == '?':
			flush()
			seg.tokens = append(seg.tokens, token{})
			wild = true
		case c == '[':
			if b, n := parseSet(s[i:]); n > 0 {
				flush()
				seg.tokens = append(seg.tokens, token{set: b})
				wild = true
				i += n
				continue
			}
			text.WriteByte(c)
		default:
			text.WriteByte(c)
		}
		i++
	}
	if !wild {
		return segment{literal: text.String()}
	}
	flush()
	return seg
}

// parseSet reads a bracket expression at the start of s, and says how long it is; 0 if it does not end, and
// the bracket is a character like others.
func parseSet(s string) (*set, int) {
	b := &set{}
	i := 1
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		b.negated = true
		i++
	}
	for first := true; i < len(s); first = false {
		if s[i] == ']' && !first {
			return b, i + 1
		}
		if class, n := parseClass(s[i:]); n > 0 {
			b.classes = append(b.classes, class)
			i += n
			continue
		}
		lo, n := setRune(s[i:])
		i += n
		hi := lo
		if i+1 < len(s) && s[i] == '-' && s[i+1] != ']' {
			hi, n = setRune(s[i+1:])
			i += 1 + n
		}
		b.ranges = append(b.ranges, lo, hi)
	}
	return nil, 0
}

// setRune reads one character of a bracket expression: itself, escaped, or as [.x.] or [=x=].
func setRune(s string) (rune, int) {
	if len(s) > 1 && s[0] == '[' && (s[1] == '.' || s[1] == '=') {
		if end := strings.Index(s[2:], s[1:2]+"]"); end > 0 {
			if r, n := utf8.DecodeRuneInString(s[2:]); n == end {
				return r, end + 4
			}
		}
	}
	skip := 0
	if s[0] == '\\' && len(s) > 1 {
		skip = 1
	}
	r, n := decode(s[skip:])
	return r, n + skip
}

var classes = map[string]func(rune) bool{
	"alpha": unicode.IsLetter, "digit": func(r rune) bool { return r >= '0' && r <= '9' },
	"alnum": func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) },
	"upper": unicode.IsUpper, "lower": unicode.IsLower, "space": unicode.IsSpace, "punct": isPunct,
	"blank": func(r rune) bool { return r == ' ' || r == '\t' }, "cntrl": unicode.IsControl,
	"graph":  func(r rune) bool { return unicode.IsGraphic(r) && !unicode.IsSpace(r) },
	"print":  unicode.IsPrint,
	"xdigit": func(r rune) bool { return unicode.Is(unicode.ASCII_Hex_Digit, r) },
}

func isPunct(r rune) bool { return unicode.IsPunct(r) || unicode.IsSymbol(r) }

func parseClass(s string) (func(rune) bool, int) {
	name, ok := strings.CutPrefix(s, "[:")
	if !ok {
		return nil, 0
	}
	end := strings.Index(name, ":]")
	if end < 0 {
		return nil, 0
	}
	class, ok := classes[name[:end]]
	if !ok {
		return nil, 0
	}
	return class, end + 4
}

// decode reads one character. A byte that is no UTF-8 is a character of its own.
func decode(s string) (rune, int) {
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n == 1 {
		return unicode.MaxRune + 1 + rune(s[0]), 1
	}
	return r, n
}

func (b *set) has(r rune) bool {
	in := false
	for i := 0; i < len(b.ranges) && !in; i += 2 {
		in = b.ranges[i] <= r && r <= b.ranges[i+1]
	}
	for i := 0; i < len(b.classes) && !in; i++ {
		in = b.classes[i](r)
	}
	return in != b.negated
}

// match reports whether a segment matches a name.
func (s *segment) match(name string) bool {
	if s.tokens == nil {
		return !s.deep && s.literal == name
	}
	if strings.HasPrefix(name, ".") && !s.dot {
		return false
	}
	// Where a match fails, only what the last star took needs to be taken back.
	ti, ni := 0, 0
	star, from := -1, 0
	for ni < len(name) || ti < len(s.tokens) {
		if ti < len(s.tokens) {
			if s.tokens[ti].star {
				star, from = ti, ni
				ti++
				continue
			}
			if n := s.tokens[ti].take(name[ni:]); n > 0 {
				ti++
				ni += n
				continue
			}
		}
		if star < 0 || from >= len(name) {
			return false
		}
		_, n := decode(name[from:])
		from += n
		ti, ni = star+1, from
	}
	return true
}

// take says how many bytes of s the token matches; 0 if it does not.
func (t *token) take(s string) int {
	if t.text != "" {
		if strings.HasPrefix(s, t.text) {
			return len(t.text)
		}
		return 0
	}
	if s == "" {
		return 0
	}
	r, n := decode(s)
	if t.set != nil && !t.set.has(r) {
		return 0
	}
	return n
}
