package require

import (
	"fmt"
	"strings"

	"github.com/berth-project/berth"
)

// Kind is how the values of a property are compared.
type Kind int

// The kinds of properties.
const (
	Text    Kind = iota // as text
	Version             // as a version: by number, part by part
)

// Known are the properties that every host has a word on.
var Known = map[string]Kind{"cuda": Version, "driver": Version, "arch": Version, "brand": Text}

// Parse reads a whole requirement as NVIDIA's container toolkit does: every term is read, whether or not an
// evaluation would reach it, and terms of properties that are not known are left out. It returns nil if nothing
// is left. It tells people what a requirement says; Check decides.
func Parse(requirement string, known map[string]Kind) (Expression, error) {
	var alternatives Any
	for alternative := range strings.SplitSeq(requirement, " ") {
		var factors All
		for factor := range strings.SplitSeq(alternative, ",") {
			term, err := ParseTerm(factor, known)
			if err != nil {
				return nil, err
			}
			if term != nil {
				factors = append(factors, *term)
			}
		}
		switch len(factors) {
		case 0:
		case 1:
			alternatives = append(alternatives, factors[0])
		default:
			alternatives = append(alternatives, factors)
		}
	}
	switch len(alternatives) {
	case 0:
		return nil, nil //nolint:nilnil // a requirement may say nothing
	case 1:
		return alternatives[0], nil
	}
	return alternatives, nil
}

// ParseTerm reads one term. It returns nil for an empty one and for a property that is not known.
func ParseTerm(text string, known map[string]Kind) (*Term, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil //nolint:nilnil // a term may be empty
	}
	i := strings.IndexAny(text, signs)
	if i < 0 {
		return nil, fmt.Errorf("%w: %q has no operator; there are = != < <= > >=", berth.ErrInvalid, text)
	}
	kind, ok := known[text[:i]]
	if !ok {
		return nil, nil //nolint:nilnil // others may know the property
	}
	term := &Term{Property: text[:i], Operator: operatorOf(text[i:])}
	term.Value = text[i+len(term.Operator):]
	if kind == Version {
		if _, err := semantic(term.Value); err != nil {
			return nil, term.invalid(err.Error())
		}
	}
	return term, nil
}

// operatorOf returns the longest operator that s begins with.
func operatorOf(s string) string {
	for n := 2; n > 0; n-- {
		if len(s) >= n && isOperator(s[:n]) {
			return s[:n]
		}
	}
	return ""
}
