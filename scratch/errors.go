package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
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

// kindOf gives an error of the file system its kind.
func kindOf(err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = berth.ErrExhausted
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = berth.ErrDenied
	case errors.Is(err, fs.ErrNotExist):
		kind = berth.ErrNotFound
	case errors.Is(err, fs.ErrExist):
		kind = berth.ErrConflict
	default:
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// inWords is a number of bytes with a unit.
func inWords(bytes int64) string {
	s := berth.FormatSize(bytes)
	if last := s[len(s)-1]; last >= '0' && last <= '9' {
		s += " bytes"
	}
	return s
}

func oneLine(errs []error) string {
	var s []string
	for _, e := range errs {
		s = append(s, strings.ReplaceAll(e.Error(), "\n", "; "))
	}
	return strings.Join(s, "; ")
}
