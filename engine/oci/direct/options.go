package direct

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// mountOptions are the options of one mount of a spec, as the new mount calls take them.
type mountOptions struct {
	set, clear  uint64 // MOUNT_ATTR_*
	recursive   bool   // set and clear go for what is mounted below, too (rro and the like)
	bind        bool
	rbind       bool
	propagation uint64 // MS_PRIVATE, …; 0 is not said
	propRec     bool
	fs          []fsOption // for the file system itself
}

// fsOption is an option of a file system: a flag where value is "".
type fsOption struct{ key, value string }

// attrOptions are the options that are attributes of a mount, as mount(8) names them.
var attrOptions = map[string]struct{ set, clear uint64 }{
	"ro":            {set: unix.MOUNT_ATTR_RDONLY},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
}

// propagations are the options that say how mounts spread.
var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "unbindable": unix.MS_UNBINDABLE,
}

// fsFlags are the flags that every file system knows.
var fsFlags = map[string]bool{"sync": true, "dirsync": true, "lazytime": true}

// fsKeys are the options that each type of file system takes. What is not here is refused: an option
// that is passed over could be one that was meant to protect.
var fsKeys = map[string]map[string]bool{
	"tmpfs":   {"size": true, "nr_blocks": true, "nr_inodes": true, "mode": true, "uid": true, "gid": true, "huge": true, "mpol": true, "inode32": true, "inode64": true, "noswap": true},
	"devpts":  {"newinstance": true, "ptmxmode": true, "mode": true, "uid": true, "gid": true, "max": true},
	"proc":    {"hidepid": true, "subset": true, "gid": true},
	"sysfs":   {},
	"mqueue":  {},
	"cgroup":  {},
	"cgroup2": {"nsdelegate": true, "memory_recursiveprot": true},
}

// parseMount reads the options of m. The error wraps ErrUnsupported and names what it is about.
func parseMount(m *specs.Mount) (mountOptions, error) {
	var o mountOptions
	for _, name := range m.Options {
		if name == "bind" || name == "rbind" {
			o.bind, o.rbind = true, o.rbind || name == "rbind"
		}
	}
	o.bind = o.bind || m.Type == "bind"
	keys, known := fsKeys[m.Type]
	if !o.bind && !known {
		return o, fmt.Errorf("type %q: %w", m.Type, berth.ErrUnsupported)
	}
	for _, name := range m.Options {
		if err := o.parse(name, m.Type, keys); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (o *mountOptions) parse(name, fsType string, keys map[string]bool) error {
	key, value, hasValue := strings.Cut(name, "=")
	if a, ok := attrOptions[name]; ok {
		o.setAttr(a.set, a.clear)
		return nil
	}
	if rest, ok := strings.CutPrefix(name, "r"); ok && o.bind {
		// rro, rnosuid and the like: the same for all that is mounted below.
		if a, ok := attrOptions[rest]; ok {
			o.setAttr(a.set, a.clear)
			o.recursive = true
			return nil
		}
	}
	if p, ok := propagations[name]; ok {
		o.propagation, o.propRec = p, false
		return nil
	}
	if rest, ok := strings.CutPrefix(name, "r"); ok && propagations[rest] != 0 {
		o.propagation, o.propRec = propagations[rest], true
		return nil
	}
	switch {
	case name == "defaults" || name == "bind" || name == "rbind" || name == "async" || name == "nolazytime":
		return nil
	case !o.bind && fsFlags[name]:
		o.fs = append(o.fs, fsOption{key: name})
		return nil
	case !o.bind && keys[key]:
		if hasValue && value == "" || strings.ContainsAny(value, ",\x00") || len(value) > 255 {
			return fmt.Errorf("option %q of %s: %w", name, fsType, berth.ErrInvalid)
		}
		o.fs = append(o.fs, fsOption{key, value})
		return nil
	}
	return fmt.Errorf("option %q: %w", name, berth.ErrUnsupported)
}

// setAttr makes a later option win over an earlier one.
func (o *mountOptions) setAttr(set, clear uint64) {
	o.set = o.set&^clear | set
	o.clear = o.clear&^set | clear
}

// readOnly reports whether the mount is to be read-only.
func (o *mountOptions) readOnly() bool { return o.set&unix.MOUNT_ATTR_RDONLY != 0 }
