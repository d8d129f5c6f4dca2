package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/wire"
)

// hostWith is a directory that has files as those of a host's /sys.
func hostWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCheckAppArmor(t *testing.T) {
	const enabled, profiles = "sys/module/apparmor/parameters/enabled", "sys/kernel/security/apparmor/profiles"
	on := hostWith(t, map[string]string{enabled: "Y\n", profiles: "/usr/bin/man (enforce)\nmy job (odd) (complain)\njob (complain)\n"})
	for name, row := range map[string]struct {
		root, profile string
		kind          error
		word          string
	}{
		"loaded":               {on, "job", nil, ""},
		"loaded, by a path":    {on, "/usr/bin/man", nil, ""},
		"stacked":              {on, "job//&other", nil, ""},
		"in a namespace":       {on, ":ns:job", nil, ""},
		"not loaded":           {on, "jo", berth.ErrNotFound, "apparmor_parser -r"},
		"no securityfs":        {hostWith(t, map[string]string{enabled: "Y\n"}), "job", berth.ErrUnsupported, "mount -t securityfs"},
		"turned off":           {hostWith(t, map[string]string{enabled: "N\n", profiles: ""}), "job", berth.ErrUnsupported, "apparmor=1"},
		"not in the kernel":    {t.TempDir(), "job", berth.ErrUnsupported, "apparmor=unconfined"},
		"unconfined, nowhere":  {t.TempDir(), "unconfined", nil, ""},
		"none, nowhere":        {t.TempDir(), "", nil, ""},
		"two words, elsewhere": {t.TempDir(), "a b", berth.ErrInvalid, "white space"},
	} {
		err := checkAppArmor(row.root, row.profile)
		if row.kind == nil && err != nil || row.kind != nil && (!errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.word)) {
			t.Errorf("%s: %v; want %v with %q", name, err, row.kind, row.word)
		}
	}
}

func TestCheckSELinux(t *testing.T) {
	with := hostWith(t, map[string]string{"sys/fs/selinux/enforce": "1"})
	for name, row := range map[string]struct {
		root    string
		options []string
		kind    error
		word    string
	}{
		"none":                {with, nil, nil, ""},
		"disabled":            {with, []string{"disable"}, nil, ""},
		"with SELinux":        {with, []string{"type:t"}, berth.ErrUnsupported, "this engine labels neither"},
		"without":             {t.TempDir(), []string{"type:t"}, berth.ErrUnsupported, "without SELinux"},
		"disabled, nowhere":   {t.TempDir(), []string{"disable"}, nil, ""},
		"what makes no sense": {with, []string{"disable", "type:t"}, berth.ErrInvalid, "no other"},
	} {
		err := checkSELinux(row.root, row.options)
		if row.kind == nil && err != nil || row.kind != nil && (!errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.word)) {
			t.Errorf("%s: %v; want %v with %q", name, err, row.kind, row.word)
		}
	}
}

// TestConfine: no profile is no field of the spec, so that runtimes of kernels without AppArmor take it.
func TestConfine(t *testing.T) {
	b := &builder{sb: &wire.Sandbox{}, step: &berth.StepSpec{AppArmor: berth.Unconfined, SELinux: []string{"disable"}}, spec: newSpec()}
	if err := b.confine(); err != nil || b.spec.Process.ApparmorProfile != "" || b.spec.Process.SelinuxLabel != "" {
		t.Errorf("profile %q, label %q, %v", b.spec.Process.ApparmorProfile, b.spec.Process.SelinuxLabel, err)
	}
}
