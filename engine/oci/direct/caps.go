package direct

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// capNames are the capabilities, each at its number.
var capNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
	"CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capSet is a set of capabilities, by number.
type capSet uint64

func (c capSet) has(n int) bool { return c&(1<<n) != 0 }

// parseCaps reads names of capabilities. One that no kernel known here has is ErrUnsupported.
func parseCaps(names []string) (capSet, error) {
	var set capSet
next:
	for _, name := range names {
		for n, known := range capNames {
			if name == known {
				set |= 1 << n
				continue next
			}
		}
		return 0, fmt.Errorf("capability %q: %w", name, berth.ErrUnsupported)
	}
	return set, nil
}

// capabilities are the five sets of a process.
type capabilities struct{ bounding, effective, inheritable, permitted, ambient capSet }

// any is what the process has, or can come to have.
func (c *capabilities) any() capSet {
	return c.bounding | c.effective | c.inheritable | c.permitted | c.ambient
}

func parseCapabilities(c *specs.LinuxCapabilities) (capabilities, error) {
	var caps capabilities
	if c == nil {
		return caps, nil
	}
	for _, s := range []struct {
		names []string
		set   *capSet
	}{
		{c.Bounding, &caps.bounding},
		{c.Effective, &caps.effective},
		{c.Inheritable, &caps.inheritable},
		{c.Permitted, &caps.permitted},
		{c.Ambient, &caps.ambient},
	} {
		set, err := parseCaps(s.names)
		if err != nil {
			return caps, err
		}
		*s.set = set
	}
	return caps, nil
}

// limit takes away what is not in have, and returns the names of what was taken.
func (c *capabilities) limit(have capSet) string {
	missing := c.any() &^ have
	for _, s := range []*capSet{&c.bounding, &c.effective, &c.inheritable, &c.permitted, &c.ambient} {
		*s &= have
	}
	var names []string
	for n, name := range capNames {
		if missing.has(n) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// ownCaps are the capabilities that this process could give away.
func ownCaps() (capSet, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	set := capSet(data[0].Permitted) | capSet(data[1].Permitted)<<32
	for n := range 64 {
		if in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0); err != nil || in == 0 {
			set &^= 1 << n
		}
	}
	return set, nil
}

const allCaps = ^capSet(0)

// usualCaps are Docker's default capabilities: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const usualCaps = capSet(0xa80425fb)

// dropUnusual takes all but usualCaps from this thread's bounding set.
func dropUnusual() error {
	for n := range 64 {
		if usualCaps.has(n) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // there is none
			return fmt.Errorf("drop %s from the bounding set: %w", capName(n), err)
		}
	}
	return nil
}

// dropBounding adds the steps that take those of set from the bounding set that the kernel knows.
func (b *builder) dropBounding(set capSet, last int) {
	for n := 0; n <= last; n++ {
		if set.has(n) {
			b.doing("drop from the bounding set", capName(n))
			b.call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, arg(n), 0, 0, 0)
		}
	}
}

func capName(n int) string {
	if n < len(capNames) {
		return capNames[n]
	}
	return fmt.Sprint("capability ", n)
}

// setCaps adds the steps that set all but the bounding set.
func (b *builder) setCaps(c *capabilities) {
	hdr := obj(b, unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3})
	data := obj(b, [2]unix.CapUserData{
		{Effective: uint32(c.effective), Permitted: uint32(c.permitted), Inheritable: uint32(c.inheritable)},
		{Effective: uint32(c.effective >> 32), Permitted: uint32(c.permitted >> 32), Inheritable: uint32(c.inheritable >> 32)},
	})
	b.doing("set capabilities", "")
	b.call(unix.SYS_CAPSET, hdr, data)
	b.doing("clear ambient capabilities", "")
	b.call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for n := range 64 {
		if c.ambient.has(n) {
			b.doing("raise ambient capability", capName(n))
			b.call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, arg(n), 0, 0)
		}
	}
}
