package berth

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
)

// Unconfined is the name of no AppArmor profile, and of no seccomp profile.
const Unconfined = "unconfined"

// CheckAppArmor refuses what cannot be the name of an AppArmor profile; "" is none given. The error wraps ErrInvalid.
func CheckAppArmor(profile string) error {
	if strings.ContainsFunc(profile, odd) {
		return fmt.Errorf("AppArmor profile %q: %w: a profile's name has no white space; `aa-status` lists those that are loaded", profile, ErrInvalid)
	}
	return nil
}

// labelKeys are the parts of SELinux labels: of the processes' own, and filetype of their files'.
var labelKeys = []string{"user", "role", "type", "level", "filetype"}

// CheckSELinux refuses what makes no SELinux label: each option is KEY:VALUE with one of Docker's keys, or "disable" alone.
// The error wraps ErrInvalid.
func CheckSELinux(options []string) error {
	seen := map[string]bool{}
	for _, o := range options {
		key, value, _ := strings.Cut(o, ":")
		switch {
		case o == "disable" && len(options) > 1:
			return fmt.Errorf("SELinux label: %w: %q goes with no other option", ErrInvalid, o)
		case o == "disable":
		case !slices.Contains(labelKeys, key) || value == "" || strings.ContainsFunc(value, odd):
			return fmt.Errorf("SELinux label %q: %w: write disable, or KEY:VALUE with one of %s, as in type:container_t", o, ErrInvalid, strings.Join(labelKeys, ", "))
		case seen[key]:
			return fmt.Errorf("SELinux label %q: %w: its %s is there twice", o, ErrInvalid, key)
		}
		seen[key] = true
	}
	return nil
}

// CheckCgroupParent refuses what is neither a cgroup's absolute, clean path nor the name of a slice of systemd; "" is none given.
// The error wraps ErrInvalid.
func CheckCgroupParent(parent string) error {
	if parent == "" || path.IsAbs(parent) && parent != "/" && path.Clean(parent) == parent && !strings.ContainsFunc(parent, unicode.IsControl) || IsSlice(parent) {
		return nil
	}
	return fmt.Errorf("cgroup parent %q: %w: write the absolute path of a cgroup below the root of its hierarchy, without .., or the name of a slice of systemd, as in /batch/job7 or batch.slice", parent, ErrInvalid)
}

// IsSlice reports whether a cgroup parent is the name of a slice of systemd, as in "batch.slice".
func IsSlice(parent string) bool {
	name, ok := strings.CutSuffix(parent, ".slice")
	return ok && !strings.Contains(name, "/") && !slices.Contains(strings.Split(name, "-"), "") && !strings.ContainsFunc(name, odd)
}

func odd(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
