package enginetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// isolation are the checks of what a container can do to the host: commands in it try, and judge. They do no
// harm where they succeed.
func isolation() []Check {
	return []Check{
		check("own processes only", ownProcesses, Isolation),
		check("own namespaces", ownNamespaces, Isolation),
		check("no file of the host", noHostFiles, Isolation),
		check("no mounting", noMounting, Isolation),
		check("devices", devices, Isolation),
		check("null device of its own", nullDevice, Isolation),
		check("masked paths", maskedPaths, Isolation),
		check("read-only paths", readOnlyPaths, Isolation),
		check("capabilities", capabilities, Isolation),
		check("capabilities added and dropped", capabilitiesChanged, Isolation),
		check("no new privileges", noNewPrivileges, Isolation),
		check("seccomp", seccomp, Isolation),
		check("seccomp profile of the user", seccompProfile, Isolation),
		check("descriptors", descriptors, Isolation),
		check("cgroup", cgroup, Isolation),
		check("signal dispositions", dispositions, Isolation),
	}
}

func ownProcesses(t *trial) error {
	// What is not init, the script, or what this pipeline starts?
	return scripts{
		{"processes", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | cut -c1-40; echo; done | grep -vE '^(|/?[^ ]*init .*|/bin/sh -c .*|tr .*|cut .*|grep .*)$' | sort -u", "", nil},
		{"numbers", "[ $(ls -d /proc/[0-9]* | wc -l) -lt 12 ] && echo few", "few\n", nil},
		{"none to signal but init", "kill -0 -1 2>/dev/null && echo others; true", "", nil},
	}.check(t)
}

func ownNamespaces(t *trial) error {
	o, err := t.sh("for n in ipc mnt net pid uts cgroup; do readlink /proc/self/ns/$n; done")
	if err != nil {
		return err
	}
	var errs []error
	seen := strings.Fields(o.Out)
	if len(seen) != 6 {
		return fmt.Errorf("namespaces: %s", o)
	}
	for _, s := range seen {
		name, _, _ := strings.Cut(s, ":")
		if own, err := os.Readlink("/proc/self/ns/" + name); err != nil || own == s {
			errs = append(errs, fmt.Errorf("the %s namespace is this host's: %s, %w", name, s, orNone(err)))
		}
	}
	return errors.Join(errs...)
}

func noHostFiles(t *trial) error {
	secret := filepath.Join(t.env.Dir, berth.NewID())
	if err := os.WriteFile(secret, []byte("secret\n"), 0o644); err != nil {
		return err
	}
	try := func(path string) string { return fmt.Sprintf("cat '%s' 2>/dev/null && echo reached;", path) }
	o, err := t.sh(try(secret) + try("/proc/1/root"+secret) + try("/proc/1/cwd/../../../../../../.."+secret) + try("/proc/self/cwd/../../../../../../../../../.."+secret) + try("../../../../../../../../../.."+secret) +
		"for fd in /proc/[0-9]*/fd/*; do cat \"$fd" + secret + "\" 2>/dev/null && echo reached; done; grep -c ' / / ' /proc/self/mountinfo; true")
	if err != nil {
		return err
	}
	if strings.Contains(o.Out, "reached") || strings.Contains(o.Out, "secret") {
		return fmt.Errorf("a file of the host was read: %s", o)
	}
	// No mount shows a directory of the host but the root, volumes, and files under /etc.
	if o, err = t.sh("awk '{print $5}' /proc/self/mountinfo | grep -vE '^/($|proc|sys|dev|etc/(hosts|hostname|resolv.conf)$|\\.)' | sort -u"); err != nil {
		return err
	}
	return o.wrote("")
}

func noMounting(t *trial) error {
	refuse := func(command string) string { return command + " 2>/dev/null && echo '" + command + " worked';" }
	o, err := t.sh("mkdir /m;" + refuse("mount -t tmpfs none /m") + refuse("mount -t proc none /m") + refuse("mount --bind / /m") + refuse("mount -o remount,rw /proc/sys") +
		refuse("mount -o remount,rw /sys") + refuse("umount /proc/kcore") + refuse("umount -l /proc") + refuse("umount /dev/shm") + refuse("pivot_root /m /m") + "true")
	if err != nil {
		return err
	}
	return o.wrote("")
}

// devices: a node that a container makes is of no use to it, nor is one of the host's.
func devices(t *trial) error {
	var script strings.Builder
	for _, d := range []string{"c 1 1", "c 1 2", "c 1 4", "c 1 11", "c 5 1", "c 10 229", "c 10 232", "c 10 235", "c 10 237", "b 7 0", "b 8 0", "b 253 0", "b 254 0", "b 259 0"} {
		node := "/tmp/" + strings.ReplaceAll(d, " ", "-")
		fmt.Fprintf(&script, "mknod %s %s 2>/dev/null; { (exec 9<%[1]s) || (exec 9>%[1]s) || (exec 9<>%[1]s); } 2>/dev/null && [ -e %[1]s ] && ! [ -f %[1]s ] && echo 'opened %[2]s'; rm -f %[1]s;\n", node, d)
	}
	script.WriteString("for f in mem kmem port kmsg sda vda loop0 loop-control fuse kvm net/tun mapper/control nvidia0 dri; do [ -e /dev/$f ] && echo there is $f; done\n")
	script.WriteString("find /dev -type b; [ $(find /dev -type c | wc -l) -lt 15 ] || find /dev -type c; true")
	if err := (scripts{{"as root", script.String(), "", nil}}).check(t); err != nil {
		return err
	}
	return scripts{{"those that all have", "mknod /tmp/null c 1 3 2>/dev/null; for f in null zero full random urandom; do head -c 1 /dev/$f >/dev/null || echo no $f; done; (echo x >/dev/full) 2>/dev/null || echo full", "full\n", nil}}.check(t)
}

// nullDevice: what a command reads without a standard input is the null device of its own /dev. Of the host's, root of
// the container could change mode and owner, and so take it from everybody.
func nullDevice(t *trial) error {
	o, err := t.sh("stat -L -c %d:%i /proc/self/fd/0; stat -c %d:%i /dev/null; chmod 666 /proc/self/fd/0 2>/dev/null && echo may change it")
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(os.DevNull, &st); err != nil {
		return err
	}
	host := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	in, rest, _ := strings.Cut(o.Out, "\n")
	own, may, _ := strings.Cut(rest, "\n")
	switch {
	case in == "" || in != own:
		return fmt.Errorf("standard input is the device %s, and its own null device is %s: %s", in, own, o)
	case in == host && may != "": // in a user namespace the host's is bound, and belongs to nobody there
		return errors.New("standard input is the host's null device, and its mode can be changed")
	}
	return nil
}

func maskedPaths(t *trial) error {
	return scripts{
		{"files", "for f in kcore keys latency_stats timer_list sched_debug acpi scsi asound interrupts; do [ -f /proc/$f ] && [ \"$(head -c 1 /proc/$f 2>/dev/null | wc -c)\" != 0 ] && echo $f; done; true", "", nil},
		{"directories", "ls -A /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap 2>/dev/null | grep -v ':$' | grep .", "", nil},
	}.checkOutput(t)
}

// checkOutput is check for scripts whose exit code says nothing.
func (table scripts) checkOutput(t *trial) error {
	for i := range table {
		table[i].script = "{ " + table[i].script + "\n}; true"
	}
	return table.check(t)
}

func readOnlyPaths(t *trial) error {
	var try strings.Builder
	for _, path := range []string{
		"/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
		"/proc/bus/pci/devices", "/proc/fs/nfsd", "/proc/kmsg", "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/mm/ksm/run", "/sys/module/apparmor/parameters/mode", "/sys/fs/cgroup/release_agent",
	} {
		// Opened for writing only: nothing is written, should it work.
		fmt.Fprintf(&try, "[ -e %s ] && (exec 9>>%[1]s) 2>/dev/null && echo %[1]s;\n", path)
	}
	try.WriteString("for d in /proc/sys /sys /proc/bus /proc/irq; do { { mkdir $d/x && rmdir $d/x; } || { touch $d/x && rm $d/x; }; } 2>/dev/null && echo $d; done\n")
	// On v1 the directory that holds the hierarchies is no cgroup, and may be the container's own.
	try.WriteString("for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/x 2>/dev/null && { [ -e $d/x/cgroup.procs ] && echo \"a cgroup in $d\"; rmdir $d/x; }; done; true")
	return scripts{{"opened for writing", try.String(), "", nil}}.checkOutput(t)
}

// dockerCapabilities are CHOWN, DAC_OVERRIDE, FSETID, FOWNER, MKNOD, NET_RAW, SETGID, SETUID, SETFCAP, SETPCAP,
// NET_BIND_SERVICE, SYS_CHROOT, KILL and AUDIT_WRITE: what Docker gives.
const dockerCapabilities uint64 = 0xa80425fb

func capabilities(t *trial) error {
	sets := func(user string) (map[string]uint64, error) {
		o, err := t.sh("grep ^Cap /proc/self/status", step(func(s *berth.StepSpec) { s.User = user }))
		if err != nil {
			return nil, err
		}
		m := map[string]uint64{}
		for line := range strings.Lines(o.Out) {
			var name string
			var value uint64
			if _, err := fmt.Sscanf(line, "%s %x", &name, &value); err != nil {
				return nil, fmt.Errorf("capabilities %s: %w", quoted(o.Out), err)
			}
			m[strings.TrimSuffix(name, ":")] = value
		}
		return m, nil
	}
	root, err := sets("")
	if err != nil {
		return err
	}
	user, err := sets("1000:1000")
	if err != nil {
		return err
	}
	var errs []error
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if beyond := root[set] &^ dockerCapabilities; beyond != 0 {
			errs = append(errs, fmt.Errorf("root has %s %#x, %#x beyond Docker's", set, root[set], beyond))
		}
		if set != "CapBnd" && user[set] != 0 {
			errs = append(errs, fmt.Errorf("a user has %s %#x", set, user[set]))
		}
	}
	if root["CapEff"] == 0 || root["CapInh"] != 0 || root["CapAmb"] != 0 {
		errs = append(errs, fmt.Errorf("root has effective %#x, inheritable %#x, ambient %#x; want some, none, none", root["CapEff"], root["CapInh"], root["CapAmb"]))
	}
	return errors.Join(errs...)
}

func capabilitiesChanged(t *trial) error {
	change := func(add, drop []string) setup {
		return step(func(s *berth.StepSpec) { s.CapAdd, s.CapDrop = add, drop })
	}
	const bounding, effective = "grep CapBnd /proc/self/status | cut -f2", "grep CapEff /proc/self/status | cut -f2"
	return scripts{
		{"all dropped", bounding + ";" + effective, "0000000000000000\n0000000000000000\n", change(nil, []string{"ALL"})},
		{"all dropped, one added", bounding + ";" + effective, "0000000000000001\n0000000000000001\n", change([]string{"CAP_CHOWN"}, []string{"all"})},
		{"one added", "[ $((0x$(" + effective + ") & 0x1000)) != 0 ] && echo has", "has\n", change([]string{"NET_ADMIN"}, nil)},
		{"one dropped", "[ $((0x$(" + bounding + ") & 0x1)) = 0 ] && chown 1 /etc/enginetest 2>/dev/null || echo cannot", "cannot\n", change(nil, []string{"CHOWN"})},
	}.check(t)
}

// noNewPrivileges: a program that belongs to root with the set-user-id bit gains nothing.
func noNewPrivileges(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	if _, err := t.in(s, "cp /bin/busybox /vol/id && chmod 4755 /vol/id"); err != nil {
		return err
	}
	o, err := t.in(s, "grep NoNewPrivs /proc/self/status | cut -f2; /vol/id -u", step(func(s *berth.StepSpec) { s.User = "1000:1000" }))
	if err != nil {
		return err
	}
	return o.wrote("1\n1000\n")
}

func seccomp(t *trial) error {
	return scripts{
		{"by default", "grep '^Seccomp:' /proc/self/status | cut -f2; (unshare -U true || unshare -m true || unshare -n true) 2>/dev/null && echo unshared; true", "2\n", nil},
		{"unconfined", "grep '^Seccomp:' /proc/self/status | cut -f2", "0\n", step(func(s *berth.StepSpec) { s.Seccomp = "unconfined" })},
	}.check(t)
}

func seccompProfile(t *trial) error {
	return scripts{
		{"its own errno", "mkdir /x 2>&1; true", "mkdir: can't create directory '/x': No space left on device\n", step(func(s *berth.StepSpec) {
			s.Seccomp = `{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}`
		})},
		{"by capability", "mkdir /x 2>/dev/null || echo no", "no\n", step(func(s *berth.StepSpec) {
			s.Seccomp = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}`
		})},
	}.check(t)
}

// descriptors: a command has its three streams, and no other descriptor of the engine's.
func descriptors(t *trial) error {
	// The shell itself opens the directory, as descriptor 3.
	return scripts{{"open", "echo /proc/self/fd/*; for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null | grep -E 'socket|memfd|anon_inode|cgroup' ; done; true", "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n", nil}}.check(t)
}

func cgroup(t *trial) error {
	// Each hierarchy shows the container's own cgroup as its root.
	return scripts{{"what is seen", "cut -d: -f3 /proc/self/cgroup | sort -u", "/\n", nil}}.check(t)
}

func dispositions(t *trial) error {
	return scripts{{"of a command", "grep -E '^Sig(Blk|Ign)' /proc/self/status | cut -f2 | sort -u", "0000000000000000\n", nil}}.check(t)
}
