package cli

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berth-project/berth"
)

// sizeValue is a flag with a number of bytes.
type sizeValue struct{ bytes *int64 }

func (v sizeValue) Set(s string) (err error) { *v.bytes, err = berth.ParseSize(s); return err }
func (v sizeValue) Type() string             { return "SIZE" }
func (v sizeValue) String() string {
	if v.bytes == nil || *v.bytes == 0 {
		return ""
	}
	return berth.FormatSize(*v.bytes)
}

// floatValue is a flag with a number that may have a fraction.
type floatValue struct{ n *float64 }

func (v floatValue) Set(s string) error {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) || strings.ContainsAny(s, "xXpP_") {
		return invalid("%q is no number", s)
	}
	if n < 0 {
		return invalid("%q is negative", s)
	}
	*v.n = n
	return nil
}
func (v floatValue) Type() string { return "N" }
func (v floatValue) String() string {
	if v.n == nil || *v.n == 0 {
		return ""
	}
	return strconv.FormatFloat(*v.n, 'f', -1, 64)
}

// intValue is a flag with a whole number of at least least.
type intValue struct {
	n     *int64
	least int64
}

func (v intValue) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return invalid("%q is no whole number", s)
	}
	if n < v.least {
		return invalid("%q is less than %d", s, v.least)
	}
	*v.n = n
	return nil
}
func (v intValue) Type() string { return "N" }
func (v intValue) String() string {
	if v.n == nil || *v.n == 0 {
		return ""
	}
	return strconv.FormatInt(*v.n, 10)
}

// durationValue is a flag with a length of time.
type durationValue struct{ d *time.Duration }

func (v durationValue) Set(s string) (err error) { *v.d, err = berth.ParseDuration(s); return err }
func (v durationValue) Type() string             { return "DURATION" }
func (v durationValue) String() string {
	if v.d == nil || *v.d <= 0 {
		return ""
	}
	return berth.FormatDuration(*v.d)
}

// waitValue is a flag with a length of time that berth waits at least a second and at most a day.
type waitValue struct{ d *time.Duration }

func (v waitValue) Set(s string) error {
	d, err := berth.ParseDuration(s)
	if err != nil {
		return err
	}
	if d < time.Second || d > 24*time.Hour {
		return invalid("%q is not from 1s to 1d", s)
	}
	*v.d = d
	return nil
}
func (v waitValue) Type() string   { return "DURATION" }
func (v waitValue) String() string { return durationValue(v).String() }

// choiceValue is a flag with one of some words.
type choiceValue struct {
	to      *string
	allowed []string
}

func (v choiceValue) Set(s string) error {
	if slices.Contains(v.allowed, s) {
		*v.to = s
		return nil
	}
	return invalid("it is one of %s", strings.Join(v.allowed, ", "))
}
func (v choiceValue) Type() string { return strings.Join(v.allowed, "|") }
func (v choiceValue) String() string {
	if v.to == nil {
		return ""
	}
	return *v.to
}

// listValue is a flag that may be repeated; its values are taken as they are.
type listValue struct {
	to   *[]string
	kind string
}

func (v listValue) Set(s string) error { *v.to = append(*v.to, s); return nil }
func (v listValue) Type() string       { return v.kind }
func (v listValue) String() string     { return "" }

// formatFlag adds --format.
func formatFlag(cmd *cobra.Command, to *string) {
	*to = "table"
	cmd.Flags().Var(choiceValue{to, []string{"table", "json"}}, "format", "table for people, json for programs")
}

// valueError tells what is wrong with the value of a flag; where says from which flag, variable or file.
func valueError(where, value string, cause error) error {
	if number, ok := errors.AsType[*strconv.NumError](cause); ok {
		return invalid("%s: %q is no value that %s reads", where, value, strings.TrimPrefix(number.Func, "Parse"))
	}
	return &quietError{where + ": " + cause.Error(), berth.ErrInvalid}
}

// flagNames are a command's flags as users write them.
func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	})
	return names
}
