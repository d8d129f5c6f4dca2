package hook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPreflight(t *testing.T) {
	dir := t.TempDir()
	readable := filepath.Join(dir, "readable")
	if err := os.WriteFile(readable, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		nodes []string
		code  int
		says  []string
	}{
		"all open":        {[]string{"/dev/null", "/dev/zero", readable}, 0, nil},
		"one that is not": {[]string{"/dev/null", dir + "/none"}, 1, []string{dir + "/none: no such file or directory"}},
		"all are told":    {[]string{dir + "/a", dir + "/b"}, 1, []string{dir + "/a: no such", dir + "/b: no such"}},
		"a directory":     {[]string{dir}, 1, []string{dir + ": is a directory"}},
		"none is named":   {nil, 2, []string{"no node is named"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			code := Main(append([]string{preflightName}, c.nodes...), nil, &out)
			if code != c.code || strings.Count(out.String(), "\n") != len(c.says) {
				t.Errorf("%d, %q", code, out.String())
			}
			for _, text := range c.says {
				if !strings.Contains(out.String(), text) {
					t.Errorf("%q, want %q", out.String(), text)
				}
			}
		})
	}
}
