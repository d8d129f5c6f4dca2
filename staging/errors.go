package staging

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/berth-project/berth"
)

// fault is an error whose text is whole; kind and cause are for errors.Is alone.
type fault struct {
	text        string
	kind, cause error
}

func (f *fault) Error() string { return f.text }

func (f *fault) Unwrap() []error {
	if f.cause == nil {
		return []error{f.kind}
	}
	return []error{f.kind, f.cause}
}

// conflict says what is where something else is to be written.
type conflict string

func (c conflict) Error() string { return string(c) }

// Unwrap is its kind.
func (c conflict) Unwrap() error { return berth.ErrConflict }

// kindOf is the kind of an error of the file system; nil if it has none.
func kindOf(err error) error {
	if _, ok := errors.AsType[conflict](err); ok {
		return berth.ErrConflict
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return berth.ErrExhausted
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return berth.ErrDenied
	case errors.Is(err, fs.ErrNotExist):
		return berth.ErrNotFound
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTEMPTY):
		return berth.ErrConflict
	default:
		return nil
	}
}

// reason is what the kernel says, without the call and the path that os puts before it.
func reason(err error) string {
	if c, ok := errors.AsType[conflict](err); ok {
		return c.Error()
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}
