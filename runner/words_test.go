package runner

import (
	"errors"
	"fmt"
	"testing"

	"github.com/berth-project/berth"
)

func TestPlainly(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"start the container: start abc-1: device /dev/x: not found", "start the container: device /dev/x: not found"},
		{"open sandbox abc: disk full", "disk full"},
		{"lend to abc: exhausted: too much", "exhausted: too much"},
		{"the file system of /data/abc: full", "the file system of /data/abc: full"},
		{"open /data/abc: gone", "open /data/abc: gone"},
		{"start abc-10: gone", "start abc-10: gone"},
		{"start abc", "start abc"},
	} {
		in := fmt.Errorf("%s%.0w", c.in, berth.ErrNotFound)
		got := plainly(in, "abc", "abc-1")
		if got.Error() != c.want || !errors.Is(got, berth.ErrNotFound) {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
	if plainly(nil, "abc") != nil {
		t.Error("no error became one")
	}
}
