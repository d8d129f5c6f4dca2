package runner

import (
	"errors"
	"fmt"
	"testing"

	"github.com/berth-project/berth"
)

// What cannot be written is told before anything runs, and nothing is made by looking.
func TestCheckDestination(t *testing.T) {
	b := newTestbed(t)
	for _, tt := range []struct {
		url, err string
		kind     error
	}{
		{b.dir, "output /out/x: cannot write " + b.dir + ": it is a directory", berth.ErrConflict},
		{"/dev/null", "output /out/x: cannot write /dev/null: it is a device", berth.ErrConflict},
		{"/dev/null/x", "output /out/x: cannot write /dev/null/x: /dev/null is no directory", berth.ErrConflict},
		{"/proc/nope/x", "output /out/x: cannot write /proc/nope/x: nothing can be made in /proc (no such file or directory)", berth.ErrConflict},
	} {
		err := checkDestination(berth.Output{Path: "/out/x", URL: tt.url, Type: berth.File}, nil)
		if fmt.Sprint(err) != tt.err || !errors.Is(err, tt.kind) {
			t.Errorf("%v\nwant %s", err, tt.err)
		}
	}
	if err := checkDestination(berth.Output{Path: "/out/x", URL: b.dir + "/new/x", Type: berth.File}, nil); err != nil {
		t.Error(err)
	}
}
