package hook

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// preflightName is no hook: it looks, from within a container, whether device nodes open.
const preflightName = "preflight"

// preflight opens nodes as a program that uses them would, and says which do not open. Drivers answer an open only once the
// device does: one that has fallen off its bus, or that this user may not use, is told here.
func preflight(nodes []string, stderr io.Writer) int {
	if len(nodes) == 0 {
		fmt.Fprintf(stderr, "berth-cdi-hook: %s: no node is named\n", preflightName)
		return 2
	}
	code := 0
	for _, name := range nodes {
		if err := open(name); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", name, err)
			code = 1
		}
	}
	return code
}

// open opens a node for all that this user may do with it: some are for reading alone.
func open(name string) error {
	var err error
	for _, how := range []int{unix.O_RDWR, unix.O_RDONLY} {
		var fd int
		if fd, err = unix.Open(name, how|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0); err == nil {
			return unix.Close(fd)
		}
		if !errors.Is(err, unix.EACCES) {
			return err
		}
	}
	return err
}
