// Package nested shows the tests of another test process, as of another user or in a virtual machine, as subtests.
package nested

import (
	"bufio"
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// Report makes subtests of t of the tests whose output with -test.v this is.
func Report(t *testing.T, out []byte) {
	t.Helper()
	results := parse(out)
	if len(results) == 0 {
		t.Error("no tests ran")
	}
	for _, res := range results {
		t.Run(res.name, func(t *testing.T) {
			switch res.outcome {
			case "SKIP":
				t.Skip(res.output)
			case "PASS":
			default:
				t.Error(res.outcome, "\n"+res.output)
			}
		})
	}
}

// result is one test that has no subtests.
type result struct{ name, outcome, output string }

var (
	headLine   = regexp.MustCompile(`^=== (?:RUN|CONT|NAME|PAUSE) +(\S+)`)
	resultLine = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) `)
)

// parse reads what test binaries print with -test.v.
func parse(out []byte) (results []result) {
	output, outcome, parent := map[string]string{}, map[string]string{}, map[string]bool{}
	var order []string
	current := ""
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if m := headLine.FindStringSubmatch(line); m != nil {
			if current = m[1]; output[current] == "" && !parent[current] && outcome[current] == "" {
				outcome[current] = "did not end"
				order = append(order, current)
				if i := strings.LastIndexByte(current, '/'); i > 0 {
					parent[current[:i]] = true
				}
			}
			continue
		}
		if m := resultLine.FindStringSubmatch(line); m != nil {
			outcome[m[2]], current = m[1], m[2]
			continue
		}
		output[current] += line + "\n"
	}
	for _, name := range order {
		if !parent[name] || outcome[name] == "FAIL" && output[name] != "" {
			results = append(results, result{name, outcome[name], output[name]})
		}
	}
	return results
}
