package image

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

// Who imports hears how far it is, and of a file how much there is.
func TestImportProgress(t *testing.T) {
	body := archive(t, file("f", strings.Repeat("x", 1<<20)))
	name := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(name, body, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	for _, known := range []bool{true, false} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var last berth.Progress
		opts := ImportOptions{Progress: func(p berth.Progress) { last = p }}
		total := int64(len(body))
		if known {
			_, err = s.Import(t.Context(), f, "a:1", opts)
		} else {
			total = 0
			_, err = s.Import(t.Context(), bytes.NewReader(body), "a:2", opts)
		}
		if err != nil || last.Total != total || last.Done == 0 || known && last.Done != total {
			t.Errorf("%+v, %v; want %d bytes in all", last, err, total)
		}
	}
}
