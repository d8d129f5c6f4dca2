package tes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes/document"
)

// ParseDevice reads HOST[:CONTAINER][:PERMISSIONS], as Docker's --device takes it. The error says what is wrong.
func ParseDevice(s string) (berth.Device, error) {
	parts := strings.Split(s, ":")
	d := berth.Device{Host: parts[0]}
	rest := parts[1:]
	if len(rest) > 0 && strings.HasPrefix(rest[0], "/") {
		d.Container, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 {
		d.Permissions, rest = rest[0], rest[1:]
		if d.Permissions == "" {
			rest = append(rest, "")
		}
	}
	if len(rest) > 0 || !strings.HasPrefix(d.Host, "/") || strings.Trim(d.Permissions, "rwm") != "" {
		return d, fmt.Errorf("device %q: %w: write HOST[:CONTAINER][:PERMISSIONS], absolute paths and letters of rwm", s, berth.ErrInvalid)
	}
	return d, nil
}

// FormatDevice writes what ParseDevice reads.
func FormatDevice(d berth.Device) string {
	parts := []string{d.Host, d.Container, d.Permissions}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ":")
}

func (c *check) device(at string, d berth.Device) {
	if !strings.HasPrefix(d.Host, "/") || strings.ContainsAny(d.Host+d.Container, ":\x00") {
		c.fault(at, "%q is not an absolute path on this host", d.Host)
	}
	if d.Container != "" {
		c.containerPath(at, d.Container, false)
	}
	if strings.Trim(d.Permissions, "rwm") != "" {
		c.fault(at, "the permissions %q are not letters of rwm", d.Permissions)
	}
}

var ulimits = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
	"sigpending", "stack",
}

// ParseUlimit reads NAME=SOFT[:HARD], as Docker's --ulimit takes it; -1 and "unlimited" are no limit. The
// error says what is wrong.
func ParseUlimit(s string) (berth.Ulimit, error) {
	bad := func(format string, args ...any) (berth.Ulimit, error) {
		return berth.Ulimit{}, fmt.Errorf("ulimit %q: %w: %s", s, berth.ErrInvalid, fmt.Sprintf(format, args...))
	}
	name, values, ok := strings.Cut(s, "=")
	if !ok {
		return bad("write NAME=SOFT[:HARD], as in nofile=1024:4096")
	}
	if !slices.Contains(ulimits, name) {
		return bad("there is no limit %q%s", name, document.DidYouMean(name, ulimits))
	}
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	u := berth.Ulimit{Name: name}
	for _, v := range []struct {
		text string
		to   *int64
	}{{soft, &u.Soft}, {hard, &u.Hard}} {
		if v.text == "unlimited" {
			v.text = "-1"
		}
		n, err := strconv.ParseInt(v.text, 10, 64)
		if err != nil || n < -1 {
			return bad("%q is no number; -1 is no limit", v.text)
		}
		*v.to = n
	}
	if above(u) {
		return bad("the soft limit is above the hard one")
	}
	return u, nil
}

func above(u berth.Ulimit) bool { return u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) }

// FormatUlimit writes what ParseUlimit reads.
func FormatUlimit(u berth.Ulimit) string {
	if u.Soft == u.Hard {
		return fmt.Sprintf("%s=%d", u.Name, u.Soft)
	}
	return fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard)
}

func (c *check) ulimit(at string, u berth.Ulimit) {
	switch {
	case !slices.Contains(ulimits, u.Name):
		c.fault(at, "there is no limit %q%s", u.Name, document.DidYouMean(u.Name, ulimits))
	case u.Soft < -1 || u.Hard < -1:
		c.fault(at, "it is negative; -1 is no limit")
	case above(u):
		c.fault(at, "the soft limit is above the hard one")
	}
}

// capabilities are those of Linux 6.x, without CAP_.
var capabilities = []string{
	"AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE",
	"DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN",
	"MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID",
	"SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE",
	"SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM",
}

func (c *check) capabilities(at string, names []string) {
	for i, name := range names {
		short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		if short != "ALL" && !slices.Contains(capabilities, short) {
			c.fault(fmt.Sprintf("%s[%d]", at, i), "there is no capability %q%s", name, document.DidYouMean(short, capabilities))
		}
	}
}
