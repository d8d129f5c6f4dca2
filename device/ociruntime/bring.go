package ociruntime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/inroot"
)

// bringer brings edits into a container that is there already. What only a spec can bring, environment and groups,
// it cannot.
type bringer struct {
	c      *container
	root   *inroot.Root
	before bool // the container's mount namespace has the host's root still
	userns bool
	user   oci.User // of the container's process
	host   cdi.Host
	log    io.Writer
}

// tree is something of the host that is to be mounted in the container: cut off from where it lies, and attached to
// nothing yet.
type tree struct {
	fd  int
	dir bool
	at  string
}

// nodes are the device nodes of edits, complete with numbers, modes and owners.
func (b *bringer) nodes(e *cdi.Edits) ([]oci.LinuxDevice, error) {
	if len(e.NetDevices) > 0 || e.IntelRdt != nil {
		return nil, fmt.Errorf("network devices and intelRdt: %w by a hook; use berth oci-runtime", berth.ErrUnsupported)
	}
	if len(e.Hooks) > 0 && !b.before {
		// Hooks run among the container's mounts: there, their paths lead to files of the image, which would run as root.
		return nil, fmt.Errorf("the hook %s: %w by a hook once the container's process has changed its root; use berth oci-runtime", e.Hooks[0].Path, berth.ErrUnsupported)
	}
	spec := oci.Spec{Process: &oci.Process{User: b.user}}
	// A node that may not be used is none that is lent.
	usable := slices.DeleteFunc(slices.Clone(e.DeviceNodes), func(d *specs.DeviceNode) bool { return d.Permissions == cdi.NoPermissions })
	if err := cdi.Apply(&spec, &cdi.Edits{DeviceNodes: usable}, b.host); err != nil || spec.Linux == nil {
		return nil, err
	}
	return spec.Linux.Devices, nil
}

// bring brings edits, whose nodes these are, into the container. It changes the thread that it runs on for good, so
// the process must end soon after.
func (b *bringer) bring(ctx context.Context, e *cdi.Edits, nodes []oci.LinuxDevice) error {
	// The host's files are taken while this thread sees the host's mounts.
	var trees []tree
	defer func() {
		for _, t := range trees {
			_ = unix.Close(t.fd)
		}
	}()
	for _, m := range e.Mounts {
		t, err := cut(m)
		if err != nil {
			return err
		}
		trees = append(trees, t)
	}
	if b.userns {
		for _, n := range nodes {
			t, err := cutNode(n, e.DeviceNodes)
			if err != nil {
				return err
			}
			trees = append(trees, t)
		}
	}
	if err := b.enter(); err != nil {
		return err
	}
	b.root.KeepToMount("/dev") // the image's links may lead to what is mounted of the host
	if !b.userns {
		for i := range nodes {
			if err := b.mknod(&nodes[i]); err != nil {
				return err
			}
		}
	}
	for _, t := range trees {
		if err := b.attach(t); err != nil {
			return err
		}
	}
	for _, h := range e.Hooks {
		if err := b.hook(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// enter has this thread see the container's mounts.
func (b *bringer) enter() error {
	fail := func(err error) error { return fmt.Errorf("enter the container's mount namespace: %w", err) }
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", b.c.state.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = unix.Close(ns) }()
	runtime.LockOSThread() // and never unlocked: the thread is of no use to others
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fail(err)
	}
	unix.Umask(0)
	if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
		return fail(err)
	}
	return nil
}

// parent opens the directory of a path in the container, making it where it is not there.
func (b *bringer) parent(name string) (fd int, base string, close func(), err error) {
	dir, err := b.root.MkdirAll(path.Dir(name), 0o755)
	if err != nil {
		return -1, "", nil, err
	}
	if err := b.root.CheckWrite(dir); err != nil {
		_ = dir.Close()
		return -1, "", nil, err
	}
	return int(dir.Fd()), path.Base(name), func() { _ = dir.Close() }, nil
}

// mknod makes a device node. A node of another number that has its name is replaced.
func (b *bringer) mknod(n *oci.LinuxDevice) error {
	fail := func(err error) error { return fmt.Errorf("make %s in the container: %w", n.Path, err) }
	kind := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK}[n.Type]
	if kind == 0 {
		return fail(fmt.Errorf("%w: type %q", berth.ErrUnsupported, n.Type))
	}
	dir, base, closeDir, err := b.parent(n.Path)
	if err != nil {
		return fail(err)
	}
	defer closeDir()
	mode := uint32(0o666)
	if n.FileMode != nil {
		mode = uint32(n.FileMode.Perm())
	}
	uid, gid := 0, 0
	if n.UID != nil {
		uid = int(*n.UID)
	}
	if n.GID != nil {
		gid = int(*n.GID)
	}
	if mode&0o006 != 0o006 && b.user.UID != 0 && !slices.Contains(append(b.user.AdditionalGids, b.user.GID), uint32(gid)) {
		uid = int(b.user.UID) // a hook cannot give the process the node's group
	}
	dev := unix.Mkdev(uint32(n.Major), uint32(n.Minor))
	var st unix.Stat_t
	switch err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
	case err != nil:
		return fail(err)
	case st.Mode&unix.S_IFMT == kind && st.Rdev == dev:
		return nil
	default:
		if err := unix.Unlinkat(dir, base, 0); err != nil {
			return fail(err)
		}
	}
	if err := unix.Mknodat(dir, base, kind|mode, int(dev)); err != nil {
		return fail(err)
	}
	if err := unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	return nil
}

// cut takes what a mount mounts.
func cut(m *specs.Mount) (tree, error) {
	t := tree{at: m.ContainerPath}
	fail := func(err error) (tree, error) { return t, fmt.Errorf("mount %s: %w", m.HostPath, err) }
	if m.Type != "" && m.Type != "bind" && m.Type != "none" {
		return fail(fmt.Errorf("%w by a hook: type %q; use berth oci-runtime", berth.ErrUnsupported, m.Type))
	}
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	recursive := uint(0)
	for _, o := range m.Options {
		switch o {
		case "ro":
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		case "nosuid":
			attr.Attr_set |= unix.MOUNT_ATTR_NOSUID
		case "nodev":
			attr.Attr_set |= unix.MOUNT_ATTR_NODEV
		case "noexec":
			attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
		case "slave", "rslave":
			attr.Propagation = unix.MS_SLAVE
		case "rbind":
			recursive = unix.AT_RECURSIVE
		case "bind", "rw", "private", "rprivate":
		default:
			return fail(fmt.Errorf("%w by a hook: option %q; use berth oci-runtime", berth.ErrUnsupported, o))
		}
	}
	return t.open(m.HostPath, flags|recursive, recursive, attr)
}

// cutNode takes a device node of the host.
func cutNode(n oci.LinuxDevice, from []*specs.DeviceNode) (tree, error) {
	t := tree{at: n.Path}
	source := n.Path
	for _, d := range from {
		if d.Path == n.Path && d.HostPath != "" {
			source = d.HostPath
		}
	}
	return t.open(source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC, 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE})
}

func (t tree) open(source string, flags, recursive uint, attr unix.MountAttr) (tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		return t, fmt.Errorf("mount %s: %w", source, err)
	}
	t.fd = fd
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil {
		t.dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|recursive, &attr)
	}
	if err != nil {
		_ = unix.Close(fd)
		return t, fmt.Errorf("mount %s: %w", source, err)
	}
	return t, nil
}

// attach mounts in the container, on a file or directory that is made where it is not there.
func (b *bringer) attach(t tree) error {
	fail := func(err error) error { return fmt.Errorf("mount on %s in the container: %w", t.at, err) }
	if err := b.asOwner(func() error { return b.makeTarget(t) }); err != nil {
		return fail(err)
	}
	target, err := b.root.Open(t.at, unix.O_PATH)
	if err != nil {
		return fail(err)
	}
	defer target.Close()
	if err := unix.MoveMount(t.fd, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fail(err)
	}
	return nil
}

// makeTarget makes what a mount is attached to.
func (b *bringer) makeTarget(t tree) error {
	if !t.dir {
		return b.touch(t.at)
	}
	dir, err := b.root.MkdirAll(t.at, 0o755)
	if err == nil {
		_ = dir.Close()
	}
	return err
}

// asOwner makes files as root, or as the root of the container's user namespace where the file system, which that has
// mounted, knows no other.
func (b *bringer) asOwner(do func() error) error {
	err := do()
	if !b.userns || !errors.Is(err, unix.EOVERFLOW) {
		return err
	}
	st, bad := b.root.Stat("/dev")
	if bad != nil {
		return errors.Join(err, bad)
	}
	// Of this thread alone; what it may do beside with files comes back with 0.
	defer func() { _, _ = unix.SetfsgidRetGid(0) }()
	defer func() { _, _ = unix.SetfsuidRetUid(0) }()
	if _, err := unix.SetfsgidRetGid(int(st.Gid)); err != nil {
		return err
	}
	if _, err := unix.SetfsuidRetUid(int(st.Uid)); err != nil {
		return err
	}
	return do()
}

// touch makes an empty file where there is nothing.
func (b *bringer) touch(name string) error {
	if _, err := b.root.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, base, closeDir, err := b.parent(name)
	if err != nil {
		return err
	}
	defer closeDir()
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// hook runs a hook of the edits, as a runtime would before it starts the container's process: a program of the host, which
// this thread sees as long as the container has not changed its root.
func (b *bringer) hook(ctx context.Context, h *specs.Hook) error {
	switch h.HookName {
	case "createContainer", "createRuntime", "prestart":
	default:
		return fmt.Errorf("the %s hook %s: %w by a hook; use berth oci-runtime", h.HookName, h.Path, berth.ErrUnsupported)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path, h.Args[min(1, len(h.Args)):]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = h.Env, bytes.NewReader(b.c.raw), &said, &said
	if len(cmd.Env) == 0 {
		cmd.Env = []string{pathEnv}
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("hook %s: %w: %s", strings.Join(append([]string{h.Path}, cmd.Args[1:]...), " "), err, strings.TrimSpace(said.String()))
	}
	_, _ = b.log.Write(said.Bytes())
	return nil
}

// pathEnv is the environment of a hook that has none: runtimes have given such a hook that of the container.
const pathEnv = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
