package device_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// suite runs the product's code on the input of one case. It returns what the case's "expected" describes,
// as anything that encodes to JSON, and the error of the operation where the suite calls that "error".
type suite func(t *testing.T, input json.RawMessage) (any, error)

// check is a suite whose cases say, in what they expect, where to look afterwards.
type check func(t *testing.T, input, expected json.RawMessage) (any, error)

// allSuites are the suites by name; each file vectors_*_test.go holds those of its packages.
var allSuites = []map[string]suite{cdiSuites, nvidiaSuites, dockerSuites, amdSuites}

type vector struct {
	Name     string
	Input    json.RawMessage
	Expected json.RawMessage
	Note     string
}

// TestVectors runs the cases in testdata/vectors and in each directory that BERTH_VECTORS lists. Cases in
// which berth differs on purpose are in testdata/vectors-differences.json, with the reason: by name, or all that
// have a note "upstream quirk: …" by that note.
func TestVectors(t *testing.T) {
	suites := registered(t)
	differences := readJSON[map[string]string](t, "testdata/vectors-differences.json")
	unused, missing := maps.Clone(differences), maps.Clone(suites)

	files := vectorFiles(t, "testdata/vectors")
	for _, dir := range filepath.SplitList(os.Getenv("BERTH_VECTORS")) {
		files = append(files, vectorFiles(t, dir)...)
	}
	for _, file := range files {
		v := readJSON[struct {
			Suite string
			Cases []vector
		}](t, file)
		run, ok := suites[v.Suite]
		switch {
		case !ok:
			t.Errorf("%s: no function is known for the suite %q", file, v.Suite)
			continue
		case len(v.Cases) == 0:
			t.Errorf("%s: no cases", file)
		}
		delete(missing, v.Suite)
		for _, c := range v.Cases {
			key := c.Name
			if _, ok := differences[c.Note]; ok && strings.HasPrefix(c.Note, "upstream quirk") {
				key = c.Note
			}
			delete(unused, key)
			t.Run(c.Name, func(t *testing.T) {
				out, err := run(t, c.Input, c.Expected)
				diff := difference(t, c.Expected, out, err)
				reason, listed := differences[key]
				switch {
				case listed && diff == "":
					t.Errorf("agrees, but testdata/vectors-differences.json says that it differs: %s", reason)
				case !listed && diff != "":
					t.Errorf("input: %s\n%s", c.Input, diff)
				}
			})
		}
	}
	for name := range missing {
		t.Errorf("no file in testdata/vectors holds cases of the suite %q", name)
	}
	for name := range unused {
		t.Errorf("testdata/vectors-differences.json names %q, which no file holds", name)
	}
}

func registered(t *testing.T) map[string]check {
	suites := map[string]check{}
	add := func(name string, run check) {
		if suites[name] != nil {
			t.Errorf("two functions for the suite %q", name)
		}
		suites[name] = run
	}
	for _, some := range allSuites {
		for name, run := range some {
			add(name, func(t *testing.T, input, _ json.RawMessage) (any, error) { return run(t, input) })
		}
	}
	for name, run := range cdiChecks {
		add(name, run)
	}
	return suites
}

func vectorFiles(t *testing.T, dir string) []string {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no vectors (%v)", dir, err)
	}
	return files
}

func readJSON[T any](t *testing.T, file string) (v T) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return v
}

// decode reads the input of a case.
func decode[T any](t *testing.T, input json.RawMessage) (v T) {
	t.Helper()
	if err := json.Unmarshal(input, &v); err != nil {
		t.Fatalf("input: %v", err)
	}
	return v
}

// remarks are the keys of "expected" that are not part of what an operation returns: the text of its error, and
// what is said about the case.
var remarks = []string{"error", "error_contains", "agreed", "by_implementation", "note_parent_of_mig_included"}

// difference says how a result is not what a case expects; "" if it is.
func difference(t *testing.T, expected json.RawMessage, out any, err error) string {
	want := parse(t, expected)
	data, e := json.Marshal(out)
	if e != nil {
		t.Fatal(e)
	}
	got := parse(t, data)
	// The text of an error is not part of the contract, only that there is one.
	mustFail := false
	if m, ok := want.(map[string]any); ok {
		mustFail = m["error"] != nil && m["error"] != false
		for _, about := range remarks {
			delete(m, about)
		}
		want = m
	}
	switch {
	case mustFail && err == nil:
		return fmt.Sprintf("no error, but %s", data)
	case !mustFail && err != nil:
		return fmt.Sprintf("error: %v", err)
	}
	return gocmp.Diff(normal(want, ""), normal(got, ""))
}

func parse(t *testing.T, data []byte) (v any) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return v
}

// normal brings what compares equal to one form: null, [] and {} are nil, a key without a value is absent,
// and lists whose key ends in _unordered or _sorted are sorted.
func normal(v any, key string) any {
	switch v := v.(type) {
	case map[string]any:
		m := map[string]any{}
		for k, e := range v {
			if e = normal(e, k); e != nil {
				m[k] = e
			}
		}
		if len(m) > 0 {
			return m
		}
		return nil
	case []any:
		if len(v) == 0 {
			return nil
		}
		l := make([]any, len(v))
		for i, e := range v {
			l[i] = normal(e, "")
		}
		if strings.HasSuffix(key, "_unordered") || strings.HasSuffix(key, "_sorted") {
			slices.SortFunc(l, func(a, b any) int {
				return cmp.Compare(fmt.Sprintf("%T %[1]v", a), fmt.Sprintf("%T %[1]v", b))
			})
		}
		return l
	default:
		return v
	}
}

// TestVectorsCatch holds the comparison itself to the rules.
func TestVectorsCatch(t *testing.T) {
	failed := fmt.Errorf("failed")
	for _, c := range []struct {
		name     string
		expected string
		out      any
		err      error
		same     bool
	}{
		{"equal", `{"a":[1,"x"]}`, map[string]any{"a": []any{1, "x"}}, nil, true},
		{"another value", `{"a":1}`, map[string]any{"a": 2}, nil, false},
		{"one too many", `{"a":1}`, map[string]any{"a": 1, "b": 2}, nil, false},
		{"false is not null", `{"ok":false}`, map[string]any{}, nil, false},
		{"empty is null", `{"a":null,"b":[],"c":{"d":{}}}`, map[string]any{"c": []any{}}, nil, true},
		{"empty text is not null", `{"a":""}`, map[string]any{}, nil, false},
		{"order", `{"a":[1,2]}`, map[string]any{"a": []any{2, 1}}, nil, false},
		{"unordered", `{"a_unordered":[{"x":1},{"x":2}]}`, map[string]any{"a_unordered": []any{map[string]any{"x": 2}, map[string]any{"x": 1}}}, nil, true},
		{"multiset", `{"a_unordered":[1,1,2]}`, map[string]any{"a_unordered": []any{1, 2, 2}}, nil, false},
		{"sorted", `{"a_sorted":["x","y"]}`, map[string]any{"a_sorted": []any{"y", "x"}}, nil, true},
		{"must fail, and does", `{"error":"upstream's words"}`, nil, failed, true},
		{"must fail, and does not", `{"error":true}`, nil, nil, false},
		{"must not fail", `{"a":1}`, map[string]any{"a": 1}, failed, false},
		{"error false", `{"error":false,"a":1}`, map[string]any{"a": 1}, nil, true},
		{"more than the error", `{"error":"e","left":["x"]}`, map[string]any{"left": []any{"y"}}, failed, false},
	} {
		if diff := difference(t, json.RawMessage(c.expected), c.out, c.err); (diff == "") != c.same {
			t.Errorf("%s: %q", c.name, diff)
		}
	}
}
