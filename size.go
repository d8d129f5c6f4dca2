package berth

import (
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// sizeUnits are the units of ParseSize in lower case, the largest first.
var sizeUnits = []struct {
	name  string // as FormatSize writes it
	bytes int64
}{
	{"EiB", 1 << 60},
	{"EB", 1e18},
	{"PiB", 1 << 50},
	{"PB", 1e15},
	{"TiB", 1 << 40},
	{"TB", 1e12},
	{"GiB", 1 << 30},
	{"GB", 1e9},
	{"MiB", 1 << 20},
	{"MB", 1e6},
	{"KiB", 1 << 10},
	{"KB", 1e3},
}

// ParseSize reads a number of bytes: a number, which may have a fraction, and a unit. K, M, G, T, P and E are
// powers of 1000 (with or without a B), KiB to EiB powers of 1024 (the B may be left out); no unit, and B,
// are bytes. The case of letters does not matter. A fraction of a byte counts as a byte. The error wraps
// ErrInvalid and says what is wrong, and where.
func ParseSize(s string) (int64, error) {
	bad := func(format string, args ...any) (int64, error) {
		return 0, fmt.Errorf("size %q: %w: %s; a size is a number and a unit, as in 512MiB, 4G or 1.5GiB", s, ErrInvalid, fmt.Sprintf(format, args...))
	}
	digits := 0
	for digits < len(s) && (s[digits] >= '0' && s[digits] <= '9' || s[digits] == '.') {
		digits++
	}
	switch {
	case s == "":
		return bad("it is empty")
	case s[0] == '-':
		return bad("it is negative")
	case digits == 0:
		return bad("it begins with %q, not with a digit", []rune(s)[0])
	case len(s) > 64:
		return bad("it is longer than 64 characters")
	}
	number, ok := new(big.Rat).SetString(s[:digits])
	if !ok || s[0] == '.' || s[digits-1] == '.' {
		return bad("%q is not a number", s[:digits])
	}
	unit := strings.TrimPrefix(s[digits:], " ")
	scale, ok := unitBytes(unit)
	if !ok {
		return bad("unknown unit %q at character %d", unit, len(s)-len(unit)+1)
	}
	number.Mul(number, new(big.Rat).SetInt64(scale))
	bytes, rest := new(big.Int).QuoRem(number.Num(), number.Denom(), new(big.Int))
	if rest.Sign() != 0 {
		bytes.Add(bytes, big.NewInt(1))
	}
	if !bytes.IsInt64() {
		return bad("it is more than %d bytes", int64(math.MaxInt64))
	}
	return bytes.Int64(), nil
}

func unitBytes(unit string) (bytes int64, ok bool) {
	unit = strings.ToUpper(unit)
	if unit == "" || unit == "B" {
		return 1, true
	}
	for _, u := range sizeUnits {
		name := strings.ToUpper(u.name)
		if unit == name || unit == strings.TrimSuffix(name, "B") {
			return u.bytes, true
		}
	}
	return 0, false
}

// FormatSize writes bytes so that ParseSize reads the same number, with the unit that makes it shortest.
func FormatSize(bytes int64) string {
	best := strconv.FormatInt(bytes, 10)
	for _, u := range sizeUnits {
		if bytes != 0 && bytes%u.bytes == 0 {
			if s := strconv.FormatInt(bytes/u.bytes, 10) + u.name; len(s) <= len(best) {
				best = s
			}
		}
	}
	return best
}

// SizeInWords writes bytes for people, rounded to three digits or so: "64 MiB", "1.5 GiB".
func SizeInWords(bytes int64) string {
	const unit = 1024
	if bytes < unit {
		return strconv.FormatInt(bytes, 10) + " bytes"
	}
	f, i := float64(bytes), -1
	for f >= unit && i < 4 {
		f /= unit
		i++
	}
	digits := 1
	if f >= 100 || f == math.Trunc(f) {
		digits = 0
	}
	return strconv.FormatFloat(f, 'f', digits, 64) + " " + string("KMGTP"[i]) + "iB"
}

// durations are what time.ParseDuration refuses for its length alone.
var durations = regexp.MustCompile(`^(\d+(\.\d*)?(h|m|s|ms|us|µs|ns))+$`)

// ParseDuration reads a length of time, as in 90s, 1h30m, 1.5h or 2d12h: numbers, which may have fractions,
// each with one of the units d, h, m, s, ms, us and ns. The error wraps ErrInvalid.
func ParseDuration(s string) (time.Duration, error) {
	bad := func(what string) (time.Duration, error) {
		return 0, fmt.Errorf("duration %q: %w: %s; a duration is written as in 90s, 1h30m or 2d", s, ErrInvalid, what)
	}
	var days time.Duration
	rest := s
	if n, after, ok := strings.Cut(s, "d"); ok {
		d, err := strconv.ParseFloat(n, 64)
		if err != nil || strings.ContainsAny(n, "+-xXeEpPnN_") {
			return bad(fmt.Sprintf("%q is not a number of days", n))
		}
		if d > math.MaxInt64/float64(24*time.Hour)-1 {
			return bad("it is longer than 292 years")
		}
		days, rest = time.Duration(d*float64(24*time.Hour)), after
	}
	switch {
	case s == "":
		return bad("it is empty")
	case s[0] == '-':
		return bad("it is negative")
	case rest == "":
		return days, nil
	case rest != "0" && rest[len(rest)-1] >= '0' && rest[len(rest)-1] <= '9':
		return bad(fmt.Sprintf("there is no unit after %q", rest))
	}
	d, err := time.ParseDuration(rest)
	switch {
	case err != nil && !durations.MatchString(rest), strings.ContainsAny(rest, "+-"):
		return bad("it is a number and a unit at least")
	case err != nil, days+d < days:
		return bad("it is longer than 292 years")
	}
	return days + d, nil
}

// FormatDuration writes d so that ParseDuration reads the same, without the units that are zero.
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
