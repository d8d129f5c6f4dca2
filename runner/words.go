package runner

import (
	"slices"
	"strings"
)

// plainError is an error with a text for who gave the task: he knows its steps by number, and no IDs.
type plainError struct {
	text string
	err  error
}

func (e *plainError) Error() string { return e.text }
func (e *plainError) Unwrap() error { return e.err }

// plainly takes out of an error's text what tells only of which sandbox or container it is: "start ID-1: ".
func plainly(err error, ids ...string) error {
	if err == nil {
		return nil
	}
	parts := strings.Split(err.Error(), ": ")
	kept := slices.DeleteFunc(slices.Clone(parts), func(part string) bool {
		return slices.ContainsFunc(ids, func(id string) bool { return isLabel(part, id) })
	})
	if len(kept) == 0 || len(kept) == len(parts) {
		return err
	}
	return &plainError{strings.Join(kept, ": "), err}
}

// isLabel reports whether text is a few words and an ID: "open sandbox ID".
func isLabel(text, id string) bool {
	words, ok := strings.CutSuffix(text, " "+id)
	return ok && !strings.ContainsFunc(words, func(r rune) bool { return (r < 'a' || r > 'z') && r != ' ' })
}

// plainly is plainly with the IDs of the task.
func (d *drive) plainly(err error) error {
	ids := []string{d.rec.Task.ID}
	for _, s := range d.rec.Steps {
		ids = append(ids, s.Spec.ID)
	}
	return plainly(err, ids...)
}
