package direct

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// The flags with which a mount is moved by descriptor.
const moveByFd = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH

// sizeofMountAttr is the size of struct mount_attr, in bytes.
const sizeofMountAttr = 32

// openBelow opens name below the directory dir without following any link. name is relative.
func (p *plan) openBelow(dir arg, name string, flags uint64) arg {
	return p.b.open(unix.SYS_OPENAT2, dir, p.b.str(name), p.how(flags), unix.SizeofOpenHow)
}

// how is the address of a struct open_how that follows no link and stays beneath the directory.
func (p *plan) how(flags uint64) arg {
	h := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for i, known := range p.hows {
		if known == h {
			return p.howAt[i]
		}
	}
	at := obj(p.b, h)
	p.hows, p.howAt = append(p.hows, h), append(p.howAt, at)
	return at
}

// openTarget opens a canonical path of the container.
func (p *plan) openTarget(canonical string, flags uint64) arg {
	rel := strings.TrimPrefix(canonical, "/")
	if rel == "" {
		rel = "."
	}
	return p.openBelow(p.root, rel, flags)
}

// mounts plans all mounts of the spec, in order.
func (p *plan) mounts() error {
	p.sources = map[int]*unix.Stat_t{}
	for i := range p.spec.Mounts {
		m := &p.spec.Mounts[i]
		c := p.early.take()
		if c == nil {
			c = prepareMount(m)
		}
		if c.fd >= 0 {
			p.own(c.fd)
			p.sources[i] = &c.st
		}
		if err := p.mount(m, c); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	return nil
}

// mount plans one mount, whose clone is that of a bind mount.
func (p *plan) mount(m *specs.Mount, c *prepared) error {
	switch o := &c.options; {
	case c.err != nil:
		return c.err
	case o.bind:
		return p.bind(m, c)
	case m.Type == "cgroup":
		return p.cgroupMount(m, o)
	default:
		_, err := p.newMount(m.Type, m.Source, m.Destination, o)
		return err
	}
}

// bind has the child move a clone of the host's to its place.
func (p *plan) bind(m *specs.Mount, c *prepared) error {
	dir := c.st.Mode&unix.S_IFMT == unix.S_IFDIR
	content := contentFile
	if dir {
		content = contentHost
	}
	at := m.Destination
	if dir || !p.bundle.Plain[at] || p.view.covers(at) {
		var err error
		if at, _, err = p.view.target(m.Destination, dir); err != nil {
			return err
		}
	}
	if err := takesPlace(at, m.Destination); err != nil {
		return err
	}
	if dir {
		p.attach(p.inherit(c.fd), at)
	} else {
		p.attachFile(p.inherit(c.fd), at)
	}
	p.view.mounts = append(p.view.mounts, planned{at: at, content: content, fd: c.fd})
	return nil
}

// takesPlace refuses a mount that a link of the image leads to where the container's own /proc, /sys or /dev is.
func takesPlace(at, dest string) error {
	if at == path.Clean(dest) || at != "/proc" && at != "/sys" && at != "/dev" && !strings.HasPrefix(at, "/proc/") {
		return nil
	}
	return fmt.Errorf("%w: the image has a link there, to %s, which is the container's own", berth.ErrInvalid, at)
}

// setAttrs applies the options of a bind mount to its clone. Without a word on propagation it is private:
// nothing that is mounted below on either side is seen on the other.
func setAttrs(fd int, dir bool, o *mountOptions) error {
	attr := unix.MountAttr{Attr_set: o.set, Attr_clr: o.clear}
	prop := unix.MountAttr{Propagation: o.propagation}
	propRec := o.propRec
	if prop.Propagation == 0 {
		prop.Propagation, propRec = unix.MS_PRIVATE, true
	}
	if !dir { // below a file nothing is mounted
		propRec = o.recursive
	}
	if o.recursive == propRec {
		attr.Propagation = prop.Propagation
	} else if err := mountSetattr(fd, propRec, &prop); err != nil {
		return err
	}
	return mountSetattr(fd, o.recursive, &attr)
}

func mountSetattr(fd int, recursive bool, attr *unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, attr)
}

// attachFile is attach for what is no directory: of several in one directory that is opened once, and a name within it
// leads nowhere else.
func (p *plan) attachFile(mount arg, at string) {
	above, base := path.Split(at)
	p.b.doing("open directory of mount point", at)
	dir, name := p.parentOf(path.Clean(above), base)
	p.b.doing("mount on", at)
	p.b.call(unix.SYS_MOVE_MOUNT, mount, p.b.str(""), dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// attach adds the steps that move a detached mount to a canonical path.
func (p *plan) attach(mount arg, at string) {
	clear(p.dirs) // it may lie upon one of them, or above
	p.b.doing("open mount point", at)
	target := p.openTarget(at, unix.O_PATH)
	p.b.doing("mount on", at)
	empty := p.b.str("")
	p.b.call(unix.SYS_MOVE_MOUNT, mount, empty, target, empty, moveByFd)
}

// newMount adds the steps that make a file system and mount it. Read-only becomes so at the end, when all
// mount points in it are made.
func (p *plan) newMount(fsType, source, dest string, o *mountOptions) (planned, error) {
	at, mode, err := p.view.target(dest, true)
	if err != nil {
		return planned{}, err
	}
	if (fsType == "proc" || fsType == "sysfs") && at != path.Clean(dest) {
		// What is hidden below these is hidden by name.
		return planned{}, fmt.Errorf("%w: the image has a link there, to %s", berth.ErrInvalid, at)
	}
	if err := takesPlace(at, dest); err != nil {
		return planned{}, err
	}
	fs := o.fs
	c := contentFixed
	attrs := o.set
	switch {
	case fsType == "tmpfs":
		c = contentEmpty
		if mode != 0 {
			// As in runc: what the image has there gives the mode, unless an option says otherwise.
			fs = append([]fsOption{{"mode", fmt.Sprintf("%04o", mode)}}, fs...)
		}
		if o.readOnly() {
			attrs &^= unix.MOUNT_ATTR_RDONLY
			p.later = append(p.later, func(m arg) func() { return func() { p.makeReadOnly(m, dest) } }(p.nextMount()))
		}
	case o.readOnly():
		fs = append(slices.Clone(fs), fsOption{key: "ro"})
	}
	m := p.makeFS(fsType, source, dest, fs, attrs)
	p.attach(m, at)
	if o.propagation != 0 && o.propagation != unix.MS_PRIVATE {
		attr := obj(p.b, unix.MountAttr{Propagation: o.propagation})
		p.b.doing("set propagation of", dest)
		p.b.call(unix.SYS_MOUNT_SETATTR, m, p.b.str(""), unix.AT_EMPTY_PATH, attr, sizeofMountAttr)
	}
	pl := planned{at: at, content: c, fd: -1, mount: m}
	p.view.mounts = append(p.view.mounts, pl)
	return pl, nil
}

// makeFS adds the steps that make a file system; the result is its detached mount.
func (p *plan) makeFS(fsType, source, dest string, fs []fsOption, attrs uint64) arg {
	b := p.b
	b.doing("mount "+fsType+" on", dest)
	m := p.nextMount()
	fd := b.open(unix.SYS_FSOPEN, b.str(fsType), unix.FSOPEN_CLOEXEC)
	if source == "" {
		source = fsType
	}
	b.call(unix.SYS_FSCONFIG, fd, unix.FSCONFIG_SET_STRING, b.str("source"), b.str(source), 0)
	for _, o := range fs {
		if o.value == "" {
			b.call(unix.SYS_FSCONFIG, fd, unix.FSCONFIG_SET_FLAG, b.str(o.key), 0, 0)
		} else {
			b.call(unix.SYS_FSCONFIG, fd, unix.FSCONFIG_SET_STRING, b.str(o.key), b.str(o.value), 0)
		}
	}
	b.call(unix.SYS_FSCONFIG, fd, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	b.call(unix.SYS_FSMOUNT, fd, unix.FSMOUNT_CLOEXEC, arg(attrs)).into(m)
	b.call(unix.SYS_CLOSE, fd)
	p.unusedMount = 0
	return m
}

// nextMount is the register that the next mount will be in.
func (p *plan) nextMount() arg {
	if p.unusedMount == 0 {
		p.unusedMount = p.b.reg()
	}
	return p.unusedMount
}

func (p *plan) makeReadOnly(mount arg, name string) {
	p.b.doing("make read-only", name)
	attr := obj(p.b, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	p.b.call(unix.SYS_MOUNT_SETATTR, mount, p.b.str(""), unix.AT_EMPTY_PATH, attr, sizeofMountAttr)
}

// readonlyPaths makes each path that is there read-only, with all below it.
func (p *plan) readonlyPaths() {
	b := p.b
	empty := b.str("")
	attr := obj(b, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE})
	for _, name := range p.spec.Linux.ReadonlyPaths {
		rel := relative(name)
		b.doing("make read-only", name)
		at := b.here()
		target := p.openBelow(p.root, rel, unix.O_PATH)
		m := b.open(unix.SYS_OPEN_TREE, target, empty, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		b.call(unix.SYS_MOUNT_SETATTR, m, empty, unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr, sizeofMountAttr)
		b.call(unix.SYS_MOVE_MOUNT, m, empty, target, empty, moveByFd)
		b.to(at, unix.ENOENT)
		b.to(at, unix.ENOTDIR)
	}
}

// maskedPaths hides each path that is there: a directory behind an empty one, a file behind a null device.
// Both come from the forking thread's read-only file system, which is known to hold what it should: an
// image cannot put something else in their place.
func (p *plan) maskedPaths() {
	b := p.b
	if len(p.spec.Linux.MaskedPaths) == 0 {
		return
	}
	empty := b.str("")
	hidden := func(name string) int {
		b.doing("hide", name)
		return b.here()
	}
	clone := func(name string, target arg) {
		dir, at := atCwd, "/"+name
		if p.small != 0 {
			dir, at = p.small, name
		}
		m := b.open(unix.SYS_OPEN_TREE, dir, b.str(at), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		b.call(unix.SYS_MOVE_MOUNT, m, empty, target, empty, moveByFd)
	}
	for _, name := range p.spec.Linux.MaskedPaths {
		rel := relative(name)
		asDir := hidden(name)
		clone(emptyDir, p.openBelow(p.root, rel, unix.O_PATH|unix.O_DIRECTORY))
		done := b.skip()
		b.to(asDir, unix.ENOTDIR)
		asFile := hidden(name)
		clone(nullFile, p.openBelow(p.root, rel, unix.O_PATH))
		b.land(done)
		b.to(asDir, unix.ENOENT)
		// ENOTDIR: something on the way is a file, so the path is not there.
		b.to(asFile, unix.ENOTDIR)
	}
}

// relative is a container path without its leading slash, clean.
func relative(name string) string {
	rel := strings.TrimPrefix(path.Clean("/"+name), "/")
	if rel == "" {
		return "."
	}
	return rel
}
