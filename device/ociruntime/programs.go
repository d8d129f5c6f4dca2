package ociruntime

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/sys/userns"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/device/cdi/program"
)

// provePrograms asks the programs that hold the container's device rules on cgroup v2, whoever made them: they allow what was
// lent, and of the devices that could be other GPUs none that was neither lent nor given.
func (c *container) provePrograms(given *oci.LinuxResources, lent []berth.Node) error {
	codes, err := grant.ProgramsOf(c.state.Pid)
	if err == nil {
		err = compareCodes(codes, given, lent)
	}
	return proofOf(err, userns.RunningInUserNS())
}

// proofOf is what an attempt to compare a container's device rules with what it was lent proves. In a user namespace there can be no
// rules that this process could have made or may read, and no need for them: no device node can be made there, and none
// opens but those that are bound from outside. Everywhere else what cannot be compared is not proved.
func proofOf(err error, inUserNS bool) error {
	switch {
	case err == nil, errors.Is(err, grant.ErrDiffers):
		return err
	case inUserNS && (errors.Is(err, grant.ErrNoGroup) || errors.Is(err, unix.EPERM)):
		return nil
	}
	return fmt.Errorf("compare the container's device rules with what it was lent: %w; berth.prove = false leaves that out", err)
}

// compareCodes compares what programs allow together with what was lent, and with what the bundle's configuration gives
// beside.
func compareCodes(codes []program.Code, given *oci.LinuxResources, lent []berth.Node) error {
	return grant.ProvePrograms(codes, lent, func(n berth.Node) string { return givenAccess(given, n) }, runtimeRules...)
}

// givenAccess is how the bundle's configuration lets the container use a device: each of its rules counts for what it names,
// the last the most.
func givenAccess(given *oci.LinuxResources, n berth.Node) string {
	has := map[rune]bool{}
	if given != nil {
		for _, d := range given.Devices {
			if d.Type != "a" && d.Type != "" && d.Type != n.Type || !matches(d.Major, n.Major) || !matches(d.Minor, n.Minor) {
				continue
			}
			access := d.Access
			if access == "" {
				access = "rwm"
			}
			for _, a := range access {
				has[a] = d.Allow
			}
		}
	}
	return strings.Map(func(a rune) rune {
		if has[a] {
			return a
		}
		return -1
	}, "rw")
}

func matches(rule *int64, number uint32) bool {
	return rule == nil || *rule < 0 || *rule == int64(number)
}
