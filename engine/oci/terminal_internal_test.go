package oci

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// early is a terminal that says EIO before it has handed out everything.
type early []string

func (e *early) Read(p []byte) (int, error) {
	if len(*e) == 0 {
		return 0, &os.PathError{Op: "read", Path: "terminal", Err: unix.EIO}
	}
	next := (*e)[0]
	*e = (*e)[1:]
	if next == "" {
		return 0, &os.PathError{Op: "read", Path: "terminal", Err: unix.EIO}
	}
	return copy(p, next), nil
}

func TestTerminalThatEndsEarly(t *testing.T) {
	for want, script := range map[string]early{
		"a, b":  {"a, ", "", "b"},
		"a":     {"", "a"},
		"":      {},
		"first": {"first", "", "", "not this: it ended twice"},
	} {
		got, err := io.ReadAll(terminal{&script})
		if string(got) != want || err == nil {
			t.Errorf("%q, %v; want %q and EIO", got, err, want)
		}
	}
}
