package berth_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDependenciesHaveReasons holds docs/dependencies.md to go.mod: each direct dependency has its line there,
// and each line its dependency.
func TestDependenciesHaveReasons(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	need := map[string]bool{}
	for line := range strings.Lines(string(mod)) {
		f := strings.Fields(line)
		if len(f) == 2 && strings.Contains(f[0], ".") && strings.HasPrefix(f[1], "v") && strings.HasPrefix(line, "\t") {
			need[f[0]] = true
		}
	}
	if len(need) < 3 {
		t.Fatalf("only %d direct dependencies found in go.mod", len(need))
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.+) \\| (.+) \\|$").FindAllStringSubmatch(string(doc), -1)
	for _, row := range rows {
		if !need[row[1]] {
			t.Errorf("docs/dependencies.md names %s, which go.mod does not need directly", row[1])
		}
		delete(need, row[1])
	}
	for m := range need {
		t.Errorf("docs/dependencies.md gives no reason for %s", m)
	}
}
