package oci

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// confine sets the step's AppArmor profile. SELinux labels are refused: the root, the volumes and the streams of the container would
// need labels, too, and without them a labelled command could use none of them.
func (b *builder) confine() error {
	p := b.step.AppArmor
	if err := checkAppArmor("/", p); err != nil {
		return err
	}
	if p != berth.Unconfined { // which is as without one
		b.spec.Process.ApparmorProfile = p
	}
	return checkSELinux("/", b.step.SELinux)
}

const giveNoProfile = "or give apparmor=unconfined"

// checkAppArmor refuses a profile that this host has not. root is where its file systems lie.
func checkAppArmor(root, profile string) error {
	if err := berth.CheckAppArmor(profile); err != nil || profile == "" || profile == berth.Unconfined {
		return err
	}
	refuse := func(kind error, why, remedy string) error {
		return fmt.Errorf("AppArmor profile %s: %w: %s; %s, "+giveNoProfile, profile, kind, why, remedy)
	}
	on, err := os.ReadFile(filepath.Join(root, "sys/module/apparmor/parameters/enabled"))
	if err != nil || !strings.HasPrefix(string(on), "Y") {
		return refuse(berth.ErrUnsupported, "this kernel runs without AppArmor", "boot it with apparmor=1 security=apparmor on its command line")
	}
	const dir = "sys/kernel/security/apparmor"
	if _, err := os.Stat(filepath.Join(root, dir)); err != nil {
		return refuse(berth.ErrUnsupported, "/"+dir+" is not there", "mount -t securityfs securityfs /sys/kernel/security")
	}
	// Of namespaces and stacks the kernel says at the start.
	if strings.HasPrefix(profile, ":") || strings.Contains(profile, "//&") || hasLoaded(filepath.Join(root, dir, "profiles"), profile) {
		return nil
	}
	return refuse(berth.ErrNotFound, "the kernel has loaded none of that name", "load it with apparmor_parser -r FILE")
}

// hasLoaded reports whether a profile is in the kernel's list; of one that this process may not read, too, the kernel says
// at the start.
func hasLoaded(list, profile string) bool {
	f, err := os.Open(list)
	if err != nil {
		return true
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if i := strings.LastIndex(s.Text(), " ("); i >= 0 && s.Text()[:i] == profile { // "docker-default (enforce)"
			return true
		}
	}
	return false
}

// checkSELinux refuses labels.
func checkSELinux(root string, options []string) error {
	if err := berth.CheckSELinux(options); err != nil || len(options) == 0 || slices.Equal(options, []string{"disable"}) {
		return err
	}
	why := "this kernel runs without SELinux"
	if _, err := os.Stat(filepath.Join(root, "sys/fs/selinux/enforce")); err == nil {
		why = "this engine labels neither processes nor their files"
	}
	return fmt.Errorf("SELinux label %s: %w: %s; run the task with --engine docker, on a daemon that was started with --selinux-enabled, or give label=disable", options[0], berth.ErrUnsupported, why)
}
