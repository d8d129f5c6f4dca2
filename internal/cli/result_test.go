package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// What a run before wrote is gone before a run is refused; what is not a result's is not.
func TestOldResultIsRemoved(t *testing.T) {
	dir := t.TempDir()
	const result = `{"id": "a", "state": "COMPLETE", "berth_exit_code": 0}`
	for name, content := range map[string]string{"r.json": result, "behind": result, "task.yaml": result, "notes.json": "{}", "notes.txt": "notes"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("behind", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	a := &app{dir: dir}
	for _, c := range []struct {
		o    runOptions
		name string
		gone bool
	}{
		{runOptions{result: "r.json"}, "r.json", true},
		{runOptions{result: "r.json"}, "r.json", true},
		{runOptions{result: "link"}, "link", false},
		{runOptions{result: "link"}, "behind", false},
		{runOptions{result: "task.yaml", file: "task.yaml"}, "task.yaml", false},
		{runOptions{result: "/dev/null"}, "/dev/null", false},
		{runOptions{result: "notes.json"}, "notes.json", false}, // no result
		{runOptions{result: "notes.txt"}, "notes.txt", false},
		{runOptions{result: "nowhere/r.json"}, "nowhere/r.json", true},
	} {
		if err := a.removeResult("run", c.o.result, c.o.file); err != nil {
			t.Errorf("%+v: %v", c.o, err)
		}
		if _, err := os.Lstat(a.abs(c.name)); os.IsNotExist(err) != c.gone {
			t.Errorf("--result %s: %s: %v", c.o.result, c.name, err)
		}
	}
}
