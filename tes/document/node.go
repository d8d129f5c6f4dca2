// Package document reads JSON and YAML into trees whose every part knows its line and column, and writes
// such trees. Task documents and berth's configuration are read through it, so that a fault in one is told
// with its place. It knows nothing of what a document means.
package document

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// Kind says what a Node is.
type Kind int

// The kinds of node.
const (
	Null Kind = iota
	Bool
	Number
	String
	List
	Map
)

func (k Kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "a map"}[k]
}

// Node is a part of a document.
type Node struct {
	Kind      Kind
	Line, Col int     // where it begins, from 1; 0 where it was not read
	Text      string  // of a Bool ("true", "false"), a Number (as JSON writes it) or a String
	Items     []*Node // of a List
	Fields    []Field // of a Map, in order; keys are unique
}

// Field is an entry of a Map.
type Field struct {
	Key       string
	Line, Col int
	Value     *Node
}

// Get returns the value of a Map's key; nil if there is none.
func (n *Node) Get(key string) *Node {
	for _, f := range n.Fields {
		if f.Key == key {
			return f.Value
		}
	}
	return nil
}

// Error is a fault in a document. It wraps Kind: ErrInvalid, or ErrUnsupported.
type Error struct {
	Name      string // of the document
	Line, Col int    // 0 where unknown
	Path      string // "executors[0].image"; "" is the whole
	Message   string
	Kind      error // nil is ErrInvalid
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Name != "" {
		b.WriteString(e.Name)
		b.WriteString(":")
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", e.Line, e.Col)
	}
	if b.Len() > 0 {
		b.WriteString(" ")
	}
	if e.Path != "" {
		b.WriteString(e.Path)
		b.WriteString(": ")
	}
	b.WriteString(e.Message)
	return b.String()
}

func (e *Error) Unwrap() error {
	if e.Kind != nil {
		return e.Kind
	}
	return berth.ErrInvalid
}

// Errors are several faults of a document.
type Errors []*Error

// Err is the faults in the order of their places, each place told once; nil where there is none, and a plain
// *Error where it is one.
func (e Errors) Err() error {
	sorted := slices.Clone(e)
	slices.SortStableFunc(sorted, func(a, b *Error) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col)) })
	var told Errors
	for _, x := range sorted {
		if !slices.ContainsFunc(told, func(t *Error) bool { return t.Path == x.Path && t.Line == x.Line && t.Col == x.Col }) {
			told = append(told, x)
		}
	}
	switch len(told) {
	case 0:
		return nil
	case 1:
		return told[0]
	}
	return told
}

// Error has a line for each fault.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap are the faults.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, x := range e {
		errs[i] = x
	}
	return errs
}
