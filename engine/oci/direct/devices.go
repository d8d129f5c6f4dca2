package direct

import (
	"fmt"
	"os"
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// device is a device node to be made.
type device struct {
	path     string
	mode     uint32 // type and permissions
	dev      uint64
	uid, gid uint32
}

// defaultDevices are in every container, as in runc.
var defaultDevices = []device{
	{"/dev/null", unix.S_IFCHR | 0o666, unix.Mkdev(1, 3), 0, 0},
	{"/dev/random", unix.S_IFCHR | 0o666, unix.Mkdev(1, 8), 0, 0},
	{"/dev/full", unix.S_IFCHR | 0o666, unix.Mkdev(1, 7), 0, 0},
	{"/dev/tty", unix.S_IFCHR | 0o666, unix.Mkdev(5, 0), 0, 0},
	{"/dev/zero", unix.S_IFCHR | 0o666, unix.Mkdev(1, 5), 0, 0},
	{"/dev/urandom", unix.S_IFCHR | 0o666, unix.Mkdev(1, 9), 0, 0},
}

// parseDevice reads a device of a spec.
func parseDevice(d *specs.LinuxDevice) (device, error) {
	dev := device{path: path.Clean(d.Path), dev: unix.Mkdev(uint32(d.Major), uint32(d.Minor))}
	switch d.Type {
	case "c", "u":
		dev.mode = unix.S_IFCHR
	case "b":
		dev.mode = unix.S_IFBLK
	case "p":
		dev.mode, dev.dev = unix.S_IFIFO, 0
	default:
		return dev, fmt.Errorf("device %s: type %q: %w", d.Path, d.Type, berth.ErrUnsupported)
	}
	if !path.IsAbs(d.Path) {
		return dev, fmt.Errorf("device %q: %w: its path is not absolute", d.Path, berth.ErrInvalid)
	}
	dev.mode |= 0o666
	if d.FileMode != nil {
		dev.mode = dev.mode&^0o7777 | uint32(*d.FileMode&os.ModePerm)
	}
	if d.UID != nil {
		dev.uid = *d.UID
	}
	if d.GID != nil {
		dev.gid = *d.GID
	}
	return dev, nil
}

// devices adds the device nodes and the links of /dev, unless /dev is bound from elsewhere.
func (p *plan) devices() error {
	for i := range p.spec.Mounts {
		m := &p.spec.Mounts[i]
		if o, err := parseMount(m); err == nil && o.bind && path.Clean(m.Destination) == "/dev" {
			return nil
		}
	}
	if _, _, err := p.view.target("/dev", true); err != nil {
		return fmt.Errorf("/dev: %w", err)
	}
	seen := map[string]bool{}
	var all []device
	for i := range p.spec.Linux.Devices {
		d, err := parseDevice(&p.spec.Linux.Devices[i])
		if err != nil {
			return err
		}
		seen[d.path] = true
		all = append(all, d)
	}
	for _, d := range defaultDevices {
		if !seen[d.path] {
			all = append(all, d)
		}
	}
	for i := range all {
		if err := p.device(&all[i]); err != nil {
			return fmt.Errorf("device %s: %w", all[i].path, err)
		}
	}
	return p.devLinks()
}

// device makes one node: in a user namespace a bind mount of the host's, else by mknod.
func (p *plan) device(d *device) error {
	if p.bindDevices() {
		return p.bindDevice(d)
	}
	dir, base := path.Split(d.path)
	at, _, err := p.view.target(dir, true)
	if err != nil {
		return err
	}
	b := p.b
	b.doing("make device", d.path)
	parent, rel := p.parentOf(at, base)
	b.call(unix.SYS_MKNODAT, parent, rel, arg(d.mode), arg(d.dev)).ok(unix.EEXIST)
	if d.uid != 0 || d.gid != 0 {
		b.call(unix.SYS_FCHOWNAT, parent, rel, arg(d.uid), arg(d.gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// parentOf gives a descriptor of a directory, and the name of an entry in it.
func (p *plan) parentOf(canonical, base string) (dir, name arg) {
	if i := p.view.mountAt(canonical); i >= 0 && p.view.mounts[i].content == contentEmpty {
		return p.view.mounts[i].mount, p.b.str(base)
	}
	if fd, ok := p.dirs[canonical]; ok {
		return fd, p.b.str(base)
	}
	fd := p.openTarget(canonical, unix.O_PATH|unix.O_DIRECTORY)
	p.dirs[canonical] = fd
	return fd, p.b.str(base)
}

// bindDevices reports whether device nodes must be bound: the kernel lets nobody make them in a user namespace.
func (p *plan) bindDevices() bool { return p.userNS || p.s.inUserNS }

func (p *plan) bindDevice(d *device) error {
	c := prepareMount(&specs.Mount{Type: "bind", Source: d.path, Options: []string{"bind", "private"}})
	if c.fd >= 0 {
		p.own(c.fd)
	}
	if c.err != nil {
		return c.err
	}
	if st := &c.st; st.Mode&unix.S_IFMT != d.mode&unix.S_IFMT || st.Rdev != d.dev {
		return fmt.Errorf("%w: devices cannot be made in a user namespace, and the host's is another", berth.ErrUnsupported)
	}
	at, _, err := p.view.target(d.path, false)
	if err != nil {
		return err
	}
	p.attachFile(p.inherit(c.fd), at)
	p.view.mounts = append(p.view.mounts, planned{at: at, content: contentFile})
	return nil
}

// devLinks are the links that runc makes in /dev.
func (p *plan) devLinks() error {
	links := [][2]string{{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}}
	if p.s.hasKcore {
		links = append(links, [2]string{"core", "/proc/kcore"})
	}
	at, _, err := p.view.target("/dev", true)
	if err != nil {
		return err
	}
	b := p.b
	for _, l := range links {
		b.doing("link", "/dev/"+l[0])
		dir, name := p.parentOf(at, l[0])
		b.call(unix.SYS_SYMLINKAT, b.str(l[1]), dir, name).ok(unix.EEXIST)
	}
	b.doing("link", "/dev/ptmx")
	dir, name := p.parentOf(at, "ptmx")
	b.call(unix.SYS_UNLINKAT, dir, name, 0).ok(unix.ENOENT)
	b.call(unix.SYS_SYMLINKAT, b.str("pts/ptmx"), dir, name)
	return nil
}
