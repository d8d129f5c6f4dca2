package image

import (
	"context"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// kinds are the kinds of error that this package answers with.
var kinds = [...]error{
	berth.ErrInvalid, berth.ErrNotFound, berth.ErrConflict, berth.ErrDenied,
	berth.ErrExhausted, berth.ErrUnavailable, berth.ErrUnsupported,
}

func hasKind(err error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

// isContext reports whether err says that the caller no longer wants the answer.
func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, berth.ErrCanceled) || errors.Is(err, berth.ErrShutdown) || errors.Is(err, berth.ErrDeadline)
}

// kindOf is the kind of an error of the operating system.
func kindOf(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return berth.ErrExhausted
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return berth.ErrDenied
	case errors.Is(err, fs.ErrNotExist):
		return berth.ErrNotFound
	}
	return berth.ErrUnavailable
}
