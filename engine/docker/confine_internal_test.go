package docker

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

func TestConfinementRefuses(t *testing.T) {
	both, neither := parts{apparmor: true, selinux: true}, parts{}
	for name, row := range map[string]struct {
		asked confinement
		by    parts
		ok    bool
	}{
		"nothing":                  {confinement{}, neither, true},
		"no profile, no AppArmor":  {confinement{apparmor: "unconfined"}, neither, true},
		"no label, no SELinux":     {confinement{selinux: []string{"disable"}}, neither, true},
		"a profile, no AppArmor":   {confinement{apparmor: "p"}, parts{selinux: true}, false},
		"a label, no SELinux":      {confinement{selinux: []string{"type:t"}}, parts{apparmor: true}, false},
		"both, where both are had": {confinement{apparmor: "p", selinux: []string{"type:t", "level:s0"}}, both, true},
	} {
		if err := row.asked.refuse(row.by); row.ok != (err == nil) || !row.ok && !errors.Is(err, berth.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	said := []string{"name=seccomp,profile=default", "name=apparmor", "name=selinuxish"}
	if !confines(said, "apparmor") || !confines(said, "seccomp") || confines(said, "selinux") {
		t.Errorf("of %q: AppArmor %t, seccomp %t, SELinux %t", said, confines(said, "apparmor"), confines(said, "seccomp"), confines(said, "selinux"))
	}
}

func TestCgroupDriverRefuses(t *testing.T) {
	for name, row := range map[string]struct {
		driver cgroupDriver
		parent string
		kind   error
		word   string
	}{
		"none asked for":            {cgroupDriver{name: "none"}, "", nil, ""},
		"path":                      {cgroupDriver{name: "cgroupfs"}, "/batch", nil, ""},
		"slice":                     {cgroupDriver{name: "systemd"}, "batch.slice", nil, ""},
		"path, of systemd":          {cgroupDriver{name: "systemd"}, "/a/batch.slice", berth.ErrInvalid, "as in batch.slice"},
		"slice, of cgroupfs":        {cgroupDriver{name: "cgroupfs"}, "batch.slice", berth.ErrInvalid, "as in /batch.slice"},
		"of a daemon without":       {cgroupDriver{name: "none"}, "/batch", berth.ErrUnsupported, `"none"`},
		"of an ordinary user on v1": {cgroupDriver{name: "cgroupfs", none: noRootless}, "/batch", berth.ErrUnsupported, "cgroup v2"},
	} {
		err := row.driver.refuse(row.parent)
		if row.kind == nil && err != nil || row.kind != nil && (!errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.word)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPodmanConfines: Podman gets in its words what Docker is asked for.
func TestPodmanConfines(t *testing.T) {
	o := podmanOptions()
	o.HostConfig.SecurityOpt = append([]string{"no-new-privileges"}, confinement{apparmor: "p", selinux: []string{"type:t", "level:s0"}}.options()...)
	s, err := podmanSpecOf(o, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if !s.NoNewPrivs || s.AppArmor != "p" || len(s.SELinux) != 2 || s.SELinux[0] != "type:t" || s.SELinux[1] != "level:s0" {
		t.Errorf("no new privileges %t, AppArmor %q, SELinux %q", s.NoNewPrivs, s.AppArmor, s.SELinux)
	}
}
