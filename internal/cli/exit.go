package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
)

// The exit codes of berth. `berth run` and `berth exec` have 125 for all that is berth's own, since any other
// code may be the command's.
const (
	exitFailed      = 1   // nothing below says it
	exitUsage       = 2   // ErrInvalid, ErrUnsupported
	exitRefused     = 3   // ErrExhausted, ErrDenied, ErrNotFound, ErrConflict
	exitUnavailable = 5   // ErrUnavailable: a retry may help
	exitOwn         = 125 // `berth run`, `berth exec`: berth's own, whatever it is
	exitCanceled    = 130 // ended by a signal to berth
	exitPipe        = 141 // nobody reads the output any more
)

// ownExit marks the commands whose exit code is that of what they run.
const ownExit = "exit code is the command's"

// exitError ends berth with a code and no further word.
type exitError int

func (exitError) Error() string { return "exit" }

// exitCode is the exit code for an error of a command.
func exitCode(cmd *cobra.Command, err error) int {
	switch {
	case errors.Is(err, berth.ErrCanceled):
		return exitCanceled
	case cmd != nil && cmd.Annotations[ownExit] != "":
		return exitOwn
	case errors.Is(err, berth.ErrInvalid), errors.Is(err, berth.ErrUnsupported):
		return exitUsage
	case errors.Is(err, berth.ErrExhausted), errors.Is(err, berth.ErrDenied), errors.Is(err, berth.ErrNotFound), errors.Is(err, berth.ErrConflict):
		return exitRefused
	case errors.Is(err, berth.ErrUnavailable):
		return exitUnavailable
	}
	return exitFailed
}
