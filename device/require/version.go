package require

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// compareVersions compares versions of digits and dots, part by part and by number. Zeros that follow in the
// longer one make no difference. The order is that of libnvidia-container.
func compareVersions(a, b string) (int, error) {
	for _, v := range []string{a, b} {
		if strings.Trim(v, "0123456789.") != "" {
			return 0, fmt.Errorf("%q is not a version", v)
		}
	}
	for a != "" && b != "" {
		var x, y uint64
		var err error
		if x, a, err = part(a); err != nil {
			return 0, err
		}
		if y, b, err = part(b); err != nil {
			return 0, err
		}
		if x != y {
			return cmp.Compare(x, y), nil
		}
	}
	return cmp.Compare(len(strings.TrimLeft(a, ".0")), len(strings.TrimLeft(b, ".0"))), nil
}

// part takes the first number off a version.
func part(v string) (n uint64, rest string, err error) {
	digits := len(v) - len(strings.TrimLeft(v, "0123456789"))
	n, err = strconv.ParseUint(v[:digits], 10, 64)
	if err != nil || n == 1<<64-1 {
		return 0, "", fmt.Errorf("%q is not a version", v)
	}
	return n, strings.TrimLeft(v[digits:], "."), nil
}

var semanticVersion = regexp.MustCompile(`^v?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?` +
	`(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?$`)

// semantic reads a semantic version in the loose form of NVIDIA's container toolkit: minor and patch may be
// missing, and numbers may have leading zeros.
func semantic(version string) (core [3]uint64, err error) {
	m := semanticVersion.FindStringSubmatch(version)
	if m == nil {
		return core, fmt.Errorf("%q is not a version", version)
	}
	for i := range core {
		if m[i+1] == "" {
			continue
		}
		if core[i], err = strconv.ParseUint(m[i+1], 10, 64); err != nil {
			return core, fmt.Errorf("%q is not a version: %s is too large", version, m[i+1])
		}
	}
	for id := range strings.SplitSeq(m[4], ".") {
		if len(id) > 1 && id[0] == '0' && strings.Trim(id, "0123456789") == "" {
			return core, fmt.Errorf("%q is not a version: %s begins with 0", version, id)
		}
	}
	return core, nil
}

// MajorMinor returns the first two numbers of a CUDA version, such as 12.4 of 12.4.1 and 12.0 of 12.
func MajorMinor(version string) (string, error) {
	core, err := semantic(version)
	if err == nil && (core[0] > 1<<32-1 || core[1] > 1<<32-1) {
		err = fmt.Errorf("%q is not a version: a number is too large", version)
	}
	if err != nil {
		return "", fmt.Errorf("CUDA version: %w: %w", berth.ErrInvalid, err)
	}
	return fmt.Sprintf("%d.%d", core[0], core[1]), nil
}
