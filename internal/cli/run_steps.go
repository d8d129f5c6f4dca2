package cli

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes"
	"github.com/berth-project/berth/tes/document"
)

// applySteps sets what each step has.
func (a *app) applySteps(o *runOptions, t *berth.Task) error {
	env, err := a.environment(o)
	if err != nil {
		return err
	}
	var more berth.Step
	if err := a.applyLists(o, &more); err != nil {
		return err
	}
	for i := range t.Steps {
		s := &t.Steps[i]
		if o.changed("env") || o.changed("env-file") {
			s.Env = mergeEnv(s.Env, env)
		} else {
			s.Env = mergeEnv(env, s.Env)
		}
		replace(o, "workdir", &s.WorkingDir, tes.CleanPath(o.workdir))
		if o.given("entrypoint") {
			s.Entrypoint = []string{}
			if o.entrypoint != "" {
				s.Entrypoint = []string{o.entrypoint}
			}
		}
		s.Fallbacks = append(s.Fallbacks, o.fallbacks...)
		s.OpenStdin = s.OpenStdin || o.interactive
		s.TTY = s.TTY || o.tty
		replace(o, "shm-size", &s.ShmSize, o.shmSize)
		replace(o, "stop-signal", &s.StopSignal, o.stopSignal)
		s.NoInit = s.NoInit || o.noInit
		replace(o, "user", &s.User, o.user)
		s.ReadOnly = s.ReadOnly || o.readOnly
		replace(o, "platform", &s.Platform, o.platform)
		replace(o, "runtime", &s.Runtime, o.runtime)
		replace(o, "security-opt", &s.Seccomp, more.Seccomp)
		replace(o, "security-opt", &s.AppArmor, more.AppArmor)
		if len(more.SELinux) > 0 && (len(s.SELinux) == 0 || o.changed("security-opt")) {
			s.SELinux = more.SELinux // one label
		}
		s.Groups = append(s.Groups, o.groups...)
		s.CapAdd = append(s.CapAdd, o.capAdd...)
		s.CapDrop = append(s.CapDrop, o.capDrop...)
		s.Mounts = append(s.Mounts, more.Mounts...)
		s.Devices = append(s.Devices, more.Devices...)
		s.Ulimits = append(s.Ulimits, more.Ulimits...)
		for k, v := range more.Sysctls {
			if s.Sysctls == nil {
				s.Sysctls = map[string]string{}
			}
			s.Sysctls[k] = v
		}
	}
	return nil
}

// applyLists reads the flags that need reading.
func (a *app) applyLists(o *runOptions, s *berth.Step) error {
	for _, text := range o.mounts {
		p, err := parsePair(text, "ro!", "rw!", "readonly!")
		if err != nil {
			return fmt.Errorf("run: --mount: %w", err)
		}
		if strings.Contains(p.src, "://") {
			return invalid("run: --mount: %q: only a path of this host can be mounted; see --input for URLs", text)
		}
		s.Mounts = append(s.Mounts, berth.Mount{Source: filepath.Clean(a.abs(p.src)), Target: tes.CleanPath(p.dst), ReadOnly: p.on("ro") || p.on("readonly")})
	}
	for _, text := range o.tmpfs {
		dst, size, err := sized(text)
		if err != nil {
			return fmt.Errorf("run: --tmpfs: %w", err)
		}
		s.Mounts = append(s.Mounts, berth.Mount{Type: berth.MountTmpfs, Target: tes.CleanPath(dst), Size: size})
	}
	for _, text := range o.devices {
		d, err := tes.ParseDevice(text)
		if err != nil {
			return fmt.Errorf("run: --device: %w", err)
		}
		s.Devices = append(s.Devices, d)
	}
	for _, text := range o.ulimits {
		u, err := tes.ParseUlimit(text)
		if err != nil {
			return fmt.Errorf("run: --ulimit: %w", err)
		}
		s.Ulimits = append(s.Ulimits, u)
	}
	for _, text := range o.sysctls {
		k, v, ok := strings.Cut(text, "=")
		if !ok {
			return invalid("run: --sysctl: %q is no kernel parameter: write K=V", text)
		}
		if s.Sysctls == nil {
			s.Sysctls = map[string]string{}
		}
		s.Sysctls[k] = v
	}
	for _, text := range o.securityOpt {
		if err := a.applySecurity(text, s); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) applySecurity(text string, s *berth.Step) error {
	key, value, _ := strings.Cut(text, "=")
	switch {
	case text == "no-new-privileges", text == "no-new-privileges=true":
		return nil // always so
	case !slices.Contains([]string{"seccomp", "apparmor", "label"}, key):
		return unsupported("run: --security-opt: %q: only seccomp=FILE|unconfined, apparmor=PROFILE|unconfined and label=KEY:VALUE|disable are known", text)
	case value == "":
		return invalid("run: --security-opt: %q names no %s", text, map[string]string{"seccomp": "file", "apparmor": "profile", "label": "label"}[key])
	case key == "apparmor":
		s.AppArmor = value
		return nil
	case key == "label":
		s.SELinux = append(s.SELinux, value)
		return nil
	case value == berth.Unconfined:
		s.Seccomp = value
		return nil
	}
	data, err := readFile(a.abs(value), 16<<20)
	if err != nil {
		return invalid("run: --security-opt: read seccomp profile: %v", err)
	}
	if _, err := document.Parse(value, data, document.JSON); err != nil {
		return fmt.Errorf("run: --security-opt: seccomp profile: %w", err)
	}
	s.Seccomp = string(bytes.TrimSpace(data))
	return nil
}
