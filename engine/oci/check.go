package oci

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

func checkLimits(l berth.Limits) error {
	switch {
	case math.IsNaN(l.CPU), l.CPU < 0, l.CPU > 0 && l.CPU < 0.01:
		return fmt.Errorf("CPU limit of %v: %w: it is at least 0.01 cores", l.CPU, berth.ErrInvalid)
	case l.Memory < 0:
		return fmt.Errorf("memory limit of %d: %w: it is a number of bytes", l.Memory, berth.ErrInvalid)
	case l.Disk < 0:
		return fmt.Errorf("disk limit of %d: %w: it is a number of bytes", l.Disk, berth.ErrInvalid)
	case l.PIDs < -1:
		return fmt.Errorf("pids limit of %d: %w: it is a number of processes, or -1 for none", l.PIDs, berth.ErrInvalid)
	}
	return nil
}

// checkStep refuses what makes no sense before anything is made for it.
func checkStep(s *berth.StepSpec) error {
	if err := checkLimits(s.Limits); err != nil {
		return err
	}
	for _, kv := range s.Env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return fmt.Errorf("environment %q: %w: a variable is NAME=VALUE", kv, berth.ErrInvalid)
		}
	}
	for what, list := range map[string][]string{"command": s.Command, "entrypoint": s.Entrypoint, "environment": s.Env} {
		for _, v := range list {
			if strings.ContainsRune(v, 0) {
				return fmt.Errorf("%s %q: %w: it has a zero byte", what, v, berth.ErrInvalid)
			}
		}
	}
	if s.StopSignal != "" && !isSignal(s.StopSignal) {
		return fmt.Errorf("stop signal %q: %w: it is a name (TERM, SIGTERM) or a number from 1 to 64", s.StopSignal, berth.ErrInvalid)
	}
	if s.Timeout < 0 || s.Grace < 0 {
		return fmt.Errorf("timeout %s, grace %s: %w: they are not negative", s.Timeout, s.Grace, berth.ErrInvalid)
	}
	return nil
}

func isSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 1 && n <= 64
	}
	return unix.SignalNum("SIG"+strings.TrimPrefix(strings.ToUpper(s), "SIG")) != 0
}
