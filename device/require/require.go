// Package require reads and checks what a container image asks of the host's GPU driver, in the language of
// NVIDIA_REQUIRE_*: "cuda>=12.4 brand=tesla,driver>=450", where a space means or and a comma means and.
//
// It does not collect requirements from an environment; device/nvidia does.
package require

import (
	"fmt"
	"strings"

	"github.com/berth-project/berth"
)

// Host is what requirements are compared with. An empty field is unknown, and meets every requirement.
type Host struct {
	CUDA   string `json:"cuda,omitempty"`   // the newest CUDA version that the driver can run: 12.4
	Driver string `json:"driver,omitempty"` // version of the kernel driver: 550.54.15
	Arch   string `json:"arch,omitempty"`   // compute capability of the GPU: 9.0
	Brand  string `json:"brand,omitempty"`  // brand of the GPU: Tesla, GeForce, Nvidia
}

// value returns what the host has for a property, whose name may be in any case; known is false where there
// is no such property.
func (h Host) value(property string) (value string, kind Kind, known bool) {
	switch strings.ToLower(property) {
	case "cuda":
		return h.CUDA, Version, true
	case "driver":
		return h.Driver, Version, true
	case "arch":
		return h.Arch, Version, true
	case "brand":
		return h.Brand, Text, true
	}
	return "", 0, false
}

func (h Host) String() string {
	var has []string
	for _, p := range []string{"cuda", "driver", "arch", "brand"} {
		if v, _, _ := h.value(p); v != "" {
			has = append(has, p+" "+v)
		}
	}
	if has == nil {
		return "nothing that is known"
	}
	return strings.Join(has, ", ")
}

// Unmet is the error of a requirement that the host does not meet. It is of the kind berth.ErrExhausted,
// because the task could never run here.
type Unmet struct {
	Requirement string
	Host        Host
}

func (e *Unmet) Error() string {
	return fmt.Sprintf("the image requires %q, and this host has %s: %v", e.Requirement, e.Host, berth.ErrExhausted)
}

func (e *Unmet) Unwrap() error { return berth.ErrExhausted }

// Check reports whether a host meets a requirement, with the meaning that libnvidia-container gives it: nil if
// so, *Unmet if not, and an error of the kind berth.ErrInvalid if evaluating it reaches a term that cannot be
// read. Terms that are not reached are not read: an alternative that holds ends the evaluation, and a factor
// that does not hold ends its alternative.
func Check(requirement string, host Host) error {
	holds := true
	for alternative := range strings.SplitSeq(requirement, " ") {
		if alternative == "" {
			continue
		}
		complete := true
		for factor := range strings.SplitSeq(alternative, ",") {
			if factor == "" {
				continue
			}
			term, err := cut(factor)
			if err == nil {
				holds, err = term.Holds(host)
			}
			if err != nil {
				return fmt.Errorf("requirement %q: %w", requirement, err)
			}
			if !holds {
				complete = false
				break
			}
		}
		// An alternative of nothing but commas ends the evaluation too, with what held last.
		if complete {
			break
		}
	}
	if !holds {
		return &Unmet{Requirement: requirement, Host: host}
	}
	return nil
}

// CheckAll is Check of several requirements, all of which must be met; the first that is not decides.
func CheckAll(requirements []string, host Host) error {
	for _, r := range requirements {
		if err := Check(r, host); err != nil {
			return err
		}
	}
	return nil
}
