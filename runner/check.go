package runner

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

// minMemory is the least that a container can be started in, in bytes, as on Docker.
const minMemory = 6 << 20

// Check reports what is wrong with a task, as far as it can be told without looking at this machine. The
// error wraps ErrInvalid, or ErrUnsupported for what is well formed and cannot be done.
func Check(t berth.Task) error {
	if t.ID != "" {
		if err := berth.CheckID(t.ID); err != nil {
			return err
		}
	}
	for _, f := range []func(*berth.Task) error{checkSteps, checkFiles, checkVolumes, checkResources} {
		if err := f(&t); err != nil {
			return err
		}
	}
	_, err := newLayout(&t)
	return err
}

func checkSteps(t *berth.Task) error {
	if len(t.Steps) == 0 {
		return fmt.Errorf("task: %w: it has no step", berth.ErrInvalid)
	}
	for i, s := range t.Steps {
		at := fmt.Sprintf("step %d", i+1)
		if strings.TrimSpace(s.Image) == "" {
			return fmt.Errorf("%s: %w: it names no image", at, berth.ErrInvalid)
		}
		for _, e := range s.Env {
			if k, _, ok := strings.Cut(e, "="); !ok || k == "" || strings.ContainsRune(e, 0) {
				return fmt.Errorf("%s: environment %q: %w: want NAME=VALUE", at, e, berth.ErrInvalid)
			}
		}
		for _, f := range []struct{ what, path string }{{"stdin", s.Stdin}, {"stdout", s.Stdout}, {"stderr", s.Stderr}} {
			if f.path == "" {
				continue
			}
			if err := checkPath(at+": "+f.what, f.path); err != nil {
				return err
			}
		}
		if s.TTY && (s.Stdout != "" || s.Stderr != "" || s.Stdin != "") {
			return fmt.Errorf("%s: %w: a terminal has no stdin, stdout or stderr file", at, berth.ErrInvalid)
		}
		if s.OpenStdin && s.Stdin != "" {
			return fmt.Errorf("%s: %w: stdin is both a file and open", at, berth.ErrInvalid)
		}
		if err := checkMounts(at, s.Mounts); err != nil {
			return err
		}
	}
	return nil
}

func checkMounts(at string, mounts []berth.Mount) error {
	seen := map[string]bool{}
	for _, m := range mounts {
		if err := checkPath(at+": mount", m.Target); err != nil {
			return err
		}
		if m.Type != berth.MountTmpfs && !filepath.IsAbs(m.Source) {
			return fmt.Errorf("%s: mount %s: %w: its source %q is no absolute host path", at, m.Target, berth.ErrInvalid, m.Source)
		}
		if c := path.Clean(m.Target); seen[c] {
			return fmt.Errorf("%s: mount %s: %w: it is mounted twice", at, m.Target, berth.ErrInvalid)
		} else {
			seen[c] = true
		}
	}
	return nil
}

func checkFiles(t *berth.Task) error {
	inputs := map[string]bool{}
	for _, in := range t.Inputs {
		if err := checkPath("input", in.Path); err != nil {
			return err
		}
		if in.URL == "" && in.Content == nil {
			return fmt.Errorf("input %s: %w: it has neither url nor content", in.Path, berth.ErrInvalid)
		}
		if in.Content != nil && in.Type == berth.Directory {
			return fmt.Errorf("input %s: %w: a directory cannot come from content", in.Path, berth.ErrInvalid)
		}
		if c := path.Clean(in.Path); inputs[c] {
			return fmt.Errorf("input %s: %w: two inputs have this path", in.Path, berth.ErrInvalid)
		} else {
			inputs[c] = true
		}
	}
	for _, o := range t.Outputs {
		if err := checkPath("output", o.Path); err != nil {
			return err
		}
		if o.URL == "" {
			return fmt.Errorf("output %s: %w: it has no url", o.Path, berth.ErrInvalid)
		}
		if err := staging.CheckOutput(o); err != nil {
			return err
		}
	}
	return nil
}

func checkVolumes(t *berth.Task) error {
	seen := map[string]bool{}
	for _, v := range t.Volumes {
		if err := checkPath("volume", v.Path); err != nil {
			return err
		}
		if v.Path != path.Clean(v.Path) {
			return fmt.Errorf("volume %s: %w: write %s", v.Path, berth.ErrInvalid, path.Clean(v.Path))
		}
		if v.Size < 0 {
			return fmt.Errorf("volume %s: %w: its size is %d bytes", v.Path, berth.ErrInvalid, v.Size)
		}
		if seen[v.Path] {
			return fmt.Errorf("volume %s: %w: it is declared twice", v.Path, berth.ErrInvalid)
		}
		seen[v.Path] = true
	}
	for _, in := range t.Inputs {
		if seen[path.Clean(in.Path)] {
			return fmt.Errorf("input %s: %w: a volume has the same path", in.Path, berth.ErrInvalid)
		}
	}
	return nil
}

func checkResources(t *berth.Task) error {
	l := t.Resources.Limits
	switch {
	case l.CPU < 0 || l.CPU > 0 && l.CPU < 0.01 || l.CPU != l.CPU:
		return fmt.Errorf("cpu %v: %w: at least 0.01 cores", l.CPU, berth.ErrInvalid)
	case l.Memory < 0 || l.Memory > 0 && l.Memory < minMemory:
		return fmt.Errorf("memory limit of %s: %w: nothing can start in less than %s", berth.FormatSize(l.Memory), berth.ErrInvalid, berth.FormatSize(minMemory))
	case l.Disk < 0:
		return fmt.Errorf("disk of %d bytes: %w", l.Disk, berth.ErrInvalid)
	case l.PIDs < -1:
		return fmt.Errorf("pids %d: %w: -1 is no limit", l.PIDs, berth.ErrInvalid)
	case l.PIDs > berth.MaxPIDs:
		return fmt.Errorf("pids %d: %w: Linux takes a limit of %d at most; -1 is no limit", l.PIDs, berth.ErrInvalid, berth.MaxPIDs)
	case l.PIDs == 1 && slices.ContainsFunc(t.Steps, func(s berth.Step) bool { return !s.NoInit }):
		return fmt.Errorf("pids 1: %w: the init is a process, too, beside which no command can start; ask for 2 at least, or for no init (--no-init)", berth.ErrInvalid)
	case t.Timeout < 0:
		return fmt.Errorf("timeout %s: %w", t.Timeout, berth.ErrInvalid)
	}
	return nil
}

// checkPath holds for every container path that is mounted, read or written.
func checkPath(what, p string) error {
	switch {
	case !path.IsAbs(p):
		return fmt.Errorf("%s %q: %w: a path in the container begins with /", what, p, berth.ErrInvalid)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("%s %q: %w: it holds a zero byte", what, p, berth.ErrInvalid)
	case path.Clean(p) == "/":
		return fmt.Errorf("%s %s: %w: it is the root of the container", what, p, berth.ErrInvalid)
	case strings.Contains(p+"/", "/../"):
		return fmt.Errorf("%s %s: %w: a path in the container has no .. in it", what, p, berth.ErrInvalid)
	}
	return nil
}
