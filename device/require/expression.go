package require

import (
	"fmt"
	"strings"

	"github.com/berth-project/berth"
)

// Expression is a requirement that has been read. Holds compares it with a host; its error is of the kind
// berth.ErrInvalid.
type Expression interface {
	fmt.Stringer
	Holds(Host) (bool, error)
}

// All holds if each of its operands does, so it does if it has none.
type All []Expression

// Any holds if one of its operands does, so it does not if it has none.
type Any []Expression

// Term compares one property with a value.
type Term struct {
	Property string
	Operator string // one of = != < <= > >=
	Value    string
}

// Holds evaluates the operands from the left, as far as is needed.
func (e All) Holds(h Host) (bool, error) {
	for _, o := range e {
		if ok, err := o.Holds(h); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// Holds evaluates the operands from the left, as far as is needed.
func (e Any) Holds(h Host) (bool, error) {
	for _, o := range e {
		if ok, err := o.Holds(h); err != nil || ok {
			return ok, err
		}
	}
	return false, nil
}

// Holds compares the host's value with the term's, by number for versions and without regard to case for
// others.
func (t Term) Holds(h Host) (bool, error) {
	have, kind, known := h.value(t.Property)
	switch {
	case !known:
		return false, t.invalid("the property is unknown; there are cuda, driver, arch and brand")
	case have == "":
		return true, nil
	case kind == Version:
		order, err := compareVersions(have, t.Value)
		if err != nil {
			return false, t.invalid(err.Error())
		}
		return holds(order, t.Operator), nil
	case t.Operator == "=":
		return strings.EqualFold(have, t.Value), nil
	case t.Operator == "!=":
		return !strings.EqualFold(have, t.Value), nil
	}
	return false, t.invalid("it can only be compared with = and !=")
}

func (t Term) invalid(why string) error {
	return fmt.Errorf("%w: %q: %s", berth.ErrInvalid, t, why)
}

func holds(order int, operator string) bool {
	switch operator {
	case "=":
		return order == 0
	case "!=":
		return order != 0
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	default:
		return order >= 0
	}
}

func (t Term) String() string { return t.Property + t.Operator + t.Value }
func (e All) String() string  { return join(e, "&&") }
func (e Any) String() string  { return join(e, "||") }

func join(operands []Expression, by string) string {
	texts := make([]string, len(operands))
	for i, o := range operands {
		texts[i] = o.String()
	}
	return strings.Join(texts, by)
}

const signs = "<>=!"

// cut splits "cuda>=12.4". A lone "!" is "!=", as in libnvidia-container.
func cut(factor string) (Term, error) {
	i := strings.IndexAny(factor, signs)
	if i < 0 {
		i = len(factor)
	}
	value := strings.TrimLeft(factor[i:], signs)
	t := Term{Property: factor[:i], Operator: factor[i : len(factor)-len(value)], Value: value}
	if t.Operator == "!" {
		t.Operator = "!="
	}
	switch {
	case t.Property == "" || t.Operator == "" || t.Value == "":
		return Term{}, fmt.Errorf("%w: %q is not of the form property, operator, value, as in cuda>=12.4", berth.ErrInvalid, factor)
	case !isOperator(t.Operator):
		return Term{}, fmt.Errorf("%w: %q: there is no operator %q; there are = != < <= > >=", berth.ErrInvalid, factor, t.Operator)
	}
	return t, nil
}

func isOperator(s string) bool {
	switch s {
	case "=", "!=", "<", "<=", ">", ">=":
		return true
	}
	return false
}
