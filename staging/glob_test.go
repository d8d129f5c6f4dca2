package staging_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		pattern, name string
		want          bool
	}{
		{"*", "a", true},
		{"*", "", true},
		{"*", ".a", false},
		{".*", ".a", true},
		{"?a", ".a", false},
		{"[.]a", ".a", false},
		{"[!x]a", ".a", false},
		{`\.a*`, ".ab", true},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "aXbYbZ", false},
		{"?", "é", true},
		{"??", "é", false},
		{"?", "\xff", true},
		{"[é]", "é", true},
		{"[\xff]", "\xff", true},
		{"[\xff]", "\uFFFD", false},
		{"[a-c]", "b", true},
		{"[a-c]", "d", false},
		{"[c-a]", "b", false},
		{"[!a-c]", "d", true},
		{"[!a-c]", "b", false},
		{"[^a]", "b", true},
		{"[]]", "]", true},
		{"[!]]", "]", false},
		{"[]-a]", "^", true},
		{"[a-]", "-", true},
		{"[-a]", "-", true},
		{"[!-a]", "-", false},
		{"[[]", "[", true},
		{"[", "[", true},
		{"[a", "[a", true},
		{"[]", "[]", true},
		{"[[:digit:][:upper:]_]", "7", true},
		{"[[:digit:][:upper:]_]", "x", false},
		{"[![:space:]]", "x", true},
		{"[[:nope:]]", ":]", true},
		{"[[.a.]-[=c=]]", "b", true},
		{`[\]]`, "]", true},
		{`[\a-\c]`, "b", true},
		{`\*`, "*", true},
		{`\*`, "a", false},
		{`a\`, `a\`, true},
		{`\\`, `\`, true},
		{"{a,b}", "a", false},
		{"{a,b}", "{a,b}", true},
		{"a.txt", "a.txt", true},
		{"a.txt", "aXtxt", false},
		{"***", "abc", true},
	}
	for _, tt := range tests {
		if got := staging.Match(tt.pattern, tt.name); got != tt.want {
			t.Errorf("%q matches %q: %v", tt.pattern, tt.name, got)
		}
	}
}

// Patterns match what a shell matches.
func TestFindAsBash(t *testing.T) {
	tree := plant(t, t.TempDir(), "a.txt=", "b.txt=", ".h.txt=", "A=", "é=", "d/a.txt=", "d/e/f/a.txt=", "d/e/b.log=", "d/.g/a.txt=", ".dot/a.txt=", "x y/a=",
		"l->d", "d/e/up->../..", "gone->nope", "[z]=", "{p,q}=", "-=", "a-b=", "d/e/f/g/h/i/a.txt=", "7=", "_=", "*=", `b\s=`)
	patterns := []string{
		"*", ".*", "*.txt", "?.txt", "[ab].txt", "[!a].txt", "d/*", "*/*", "*/a.txt", "**", "**/a.txt", "d/**/a.txt", "**/*.txt", "**/e/**/a.txt", "**/d/**", "d/**/*", "**/.g/*",
		"**/f/*/h/**/*", "[[:upper:]]", "[[:digit:]_-]", "[A-Z]", "[a-z]", "l/*", "l/**/*", "*/e/*", "**/up/*", "d/e/up/*.txt", "[[]*", `\[z\]*`, `\**`, "{*", "*q}", "x*/*", "x y/*", "nope/*", "go*", "*/", "d//*.txt", "./*.txt", `b\\*`,
		"**/**/a.txt", "**/?", "*/**/*.log", ".dot/*", "[.]*", "[!.]*", "a?b", "a[!a-z]b", "a[,-.]b",
	}
	var script strings.Builder
	script.WriteString("shopt -s globstar nullglob; set +o noclobber; cd \"$1\" || exit\n")
	for _, p := range patterns {
		fmt.Fprintf(&script, "printf '%%s\\n' %s; echo ---\n", strings.NewReplacer(" ", `\ `, "{", `\{`, "}", `\}`).Replace(p))
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script.String(), "bash", tree)
	cmd.Env = []string{"LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, tree)})
	for i, block := range strings.SplitAfter(string(out), "---\n")[:len(patterns)] {
		want := map[string]bool{}
		for line := range strings.SplitSeq(strings.TrimSuffix(block, "---\n"), "\n") {
			line = strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(line, "//", "/"), "./"), "/")
			if line != "" && line != "." && line != ".." {
				want[line] = true
			}
		}
		if patterns[i] == "*/" { // directories only, in a shell
			continue
		}
		got, err := staging.Find(t.Context(), v, "/v/"+patterns[i])
		if err != nil {
			t.Errorf("%s: %v", patterns[i], err)
		}
		have := map[string]bool{}
		for _, g := range got {
			have[strings.TrimPrefix(g, "/v/")] = true
		}
		for w := range want {
			// A shell's x/** is x itself, too, and its x/**/y follows one link, but its **/y does not.
			if strings.HasSuffix(patterns[i], "d/**") && strings.HasSuffix("/"+w, "/d") || strings.Contains(patterns[i], "/**/") && strings.Contains(w, "/e/up/") {
				delete(want, w)
			}
		}
		if fmt.Sprint(have) != fmt.Sprint(want) {
			t.Errorf("%s:\nfound %v\nbash  %v", patterns[i], keys(have), keys(want))
		}
	}
}

func keys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func TestCheckPattern(t *testing.T) {
	for p, want := range map[string]bool{
		"/a/*": true, "/a/**/b**c/**": true, "a/*": false, "/a/../*": false, `/a/\.\./*`: false, `/a/.\./b`: false, "/a/.*": true,
		"/" + strings.Repeat("a/", 300) + "*": false, "/" + strings.Repeat("a", 5000): false,
		"/a**b/c**d/e**f/g**h": true, "/a**b/c**d/e**f/g**h/i**j": false,
	} {
		if err := staging.CheckPattern(p); (err == nil) != want || err != nil && !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%.60s: %v", p, err)
		}
	}
}

// A pattern that makes a simple matcher try for ever is answered at once.
func TestMatchCost(t *testing.T) {
	start := time.Now()
	if staging.Match(strings.Repeat("*a", 1000)+"b", strings.Repeat("a", 255)) {
		t.Error("matched")
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %s", took)
	}
}

// reference says by way of a regular expression what a segment without bracket expressions matches.
func reference(segment, name string) bool {
	var re strings.Builder
	re.WriteString(`(?s)\A`)
	for i := 0; i < len(segment); {
		r, n := utf8.DecodeRuneInString(segment[i:])
		switch {
		case r == '*':
			re.WriteString(".*")
		case r == '?':
			re.WriteString(".")
		case r == '\\' && i+1 < len(segment):
			i++
			r, n = utf8.DecodeRuneInString(segment[i:])
			fallthrough
		default:
			re.WriteString(regexp.QuoteMeta(string(r)))
		}
		i += n
	}
	re.WriteString(`\z`)
	if strings.HasPrefix(name, ".") && !strings.HasPrefix(strings.TrimPrefix(segment, `\`), ".") {
		return false
	}
	return regexp.MustCompile(re.String()).MatchString(name)
}

func FuzzMatch(f *testing.F) {
	for _, s := range [][2]string{{"*.txt", "a.txt"}, {"[!a-c]*", "dx"}, {"**", "x"}, {"[[:alpha:]", "a"}, {`\`, `\`}, {"a*b*c*d", "abcd"}, {"[a-\\", "a"}, {".?", ".é"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, segment, name string) {
		if len(segment) > 200 || len(name) > 255 || strings.Contains(segment+name, "/") {
			return
		}
		got := staging.Match(segment, name)
		if strings.Contains(segment, "[") || !utf8.ValidString(segment) || !utf8.ValidString(name) || segment == "**" {
			return
		}
		if want := reference(segment, name); got != want {
			t.Errorf("%q matches %q: %v", segment, name, got)
		}
	})
}

func FuzzFind(f *testing.F) {
	for _, p := range []string{"/v/*", "/v/**/f", "/v/**x**", "/v/[a-z]/../x", `/v/\./\.\.`, "/**", "//v//", "/v/self/**/self/*", "/v/{a,b}*"} {
		f.Add(p)
	}
	tree := f.TempDir()
	for _, e := range []string{"f=1", "d/f=2", "d/.h/f=3", "self->.", "up->..", "host->/etc", "d/gone->nope"} {
		if err := plantOne(tree, e); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, p string) {
		v := view(t, staging.Mount{Path: "/v", Root: volume(t, tree)})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		found, err := staging.Find(ctx, v, "/v/"+p)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%q takes for ever", p)
		}
		for _, m := range found {
			if m != "/v" && !strings.HasPrefix(m, "/v/") && !strings.HasPrefix(m, "/") || strings.Contains(m, "/../") || strings.Contains(m, "passwd") {
				t.Errorf("%q finds %s", p, m)
			}
		}
	})
}

func FuzzHostPath(f *testing.F) {
	for _, s := range []string{"/a/b", "file:///a%20b", "file://localhost/x", "file:/x", "file://h/x", "s3://b/k", "FILE:///x", "file:", "://", "file:///%00", "/a/../../b", "file:///a/%2e%2e/b", "a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, local, err := staging.HostPath(s)
		if !local || err != nil {
			if p != "" {
				t.Errorf("%q: %q beside %v", s, p, err)
			}
			return
		}
		if !strings.HasPrefix(p, "/") || strings.Contains(p, "\x00") || strings.HasSuffix(p, "/..") || strings.Contains(p, "/../") {
			t.Errorf("%q is %q", s, p)
		}
	})
}
