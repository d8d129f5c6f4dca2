package docker

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// Elsewhere is the daemon's address where it is on another machine: it has none of this one's files, devices and cgroups.
// "" where it is on this one. It talks to the daemon once.
func (e *Engine) Elsewhere(ctx context.Context) (string, error) {
	h, err := e.daemon(ctx)
	if err != nil || !h.remote {
		return "", err
	}
	return e.at.Host, nil
}

// notHere says why what is of this machine cannot be had in a container of a daemon on another.
func (e *Engine) notHere(what string) error {
	return fmt.Errorf("%s: %w: the daemon at %s is on another machine and has none of this one's", what, berth.ErrUnsupported, e.at.Host)
}

// isElsewhere finds out whether the daemon is on another machine. A unix socket is this machine's, unless who listens on it
// passes on to a daemon that does not see this machine's files, as ssh does. Any other address is another machine's, unless
// that has this one's name and kernel and sees its files.
func (e *Engine) isElsewhere(ctx context.Context, info system.Info, podman bool) bool {
	path, local := strings.CutPrefix(e.at.Host, "unix://")
	if local {
		if podman || listensHere(path) {
			return false
		}
		seen, known := e.seesFiles(ctx)
		return known && !seen
	}
	var own unix.Utsname
	name, err := os.Hostname()
	if podman || err != nil || name != info.Name || unix.Uname(&own) != nil || unix.ByteSliceToString(own.Release[:]) != info.KernelVersion {
		return true
	}
	seen, known := e.seesFiles(ctx)
	return !known || !seen
}

// listensHere reports whether a daemon itself listens on a socket, or the process that starts it when it is needed.
func listensHere(path string) bool {
	pid, comm := listener(path)
	return pid == 1 || slices.Contains([]string{"dockerd", "podman", "systemd"}, comm)
}

// listener is who listens on a socket; 0 where that is nobody who can be seen here.
func listener(path string) (pid int, comm string) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return 0, ""
	}
	defer func() { _ = c.Close() }()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, ""
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil || cred.Pid <= 0 {
		return 0, ""
	}
	said, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
	if err != nil {
		return int(cred.Pid), ""
	}
	return int(cred.Pid), strings.TrimSpace(string(said))
}

// born is when the daemon's process was started; zero where that cannot be seen, as of one whose socket is systemd's.
func (e *Engine) born() time.Time {
	path, local := strings.CutPrefix(e.at.Host, "unix://")
	if !local || !e.bornAt.IsZero() {
		return e.bornAt
	}
	pid, comm := listener(path)
	if comm != "dockerd" {
		return time.Time{}
	}
	p, err := lookAt(pid)
	var up unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(p.began)*(time.Second/ticksIn) - time.Duration(up.Nano()))
}

// ticksIn is how many ticks a second has in /proc, on every platform of Linux that Go knows.
const ticksIn = 100

// noImage is a name that no image has.
const noImage = "berth.invalid/none:none"

// seesFiles asks the daemon to bind a file into a container that cannot be made: it looks for the file before it looks for
// the image, or only after. known: it has answered so that it can be told.
func (e *Engine) seesFiles(ctx context.Context) (seen, known bool) {
	dir, err := os.MkdirTemp(filepath.Join(e.cfg.Dir, runDir), "probe-")
	if err != nil {
		return false, false
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, rand.Text())
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return false, false
	}
	for _, image := range append([]string{noImage}, e.anyImage(ctx)...) {
		there, _ := e.findsBind(ctx, image, file)
		if !there {
			return false, true
		}
		if not, answered := e.findsBind(ctx, image, file+"-not"); answered && !not {
			return true, true
		}
	}
	return false, false
}

// anyImage is an image that the daemon has, for one that looks for that first.
func (e *Engine) anyImage(ctx context.Context) []string {
	ctx, cancel := e.call(ctx)
	defer cancel()
	res, err := e.api().ImageList(ctx, client.ImageListOptions{})
	if err != nil || len(res.Items) == 0 {
		return nil
	}
	return []string{res.Items[0].ID}
}

// probeSandbox is in the place of a sandbox on the container that is made to look for a file. It lives for a moment, and
// is left where a process is killed then.
const probeSandbox = "probe"

// findsBind reports whether the daemon finds a file to bind it; true where it did not come to look for it.
func (e *Engine) findsBind(ctx context.Context, image, file string) (found, answered bool) {
	ctx, cancel := e.call(ctx)
	defer cancel()
	res, err := e.api().ContainerCreate(ctx, client.ContainerCreateOptions{
		Config:     &container.Config{Image: image, Cmd: []string{"true"}, Labels: map[string]string{LabelOwner: e.owner, LabelSandbox: probeSandbox, LabelStep: ""}},
		HostConfig: &container.HostConfig{NetworkMode: "none", Mounts: []mount.Mount{{Type: mount.TypeBind, Source: file, Target: "/probe", ReadOnly: true}}},
	})
	if err == nil {
		_, err := e.api().ContainerRemove(ctx, res.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if err != nil {
			e.cfg.Logger.Warn("container of a probe not removed", "container", res.ID, "error", err)
		}
		return true, true
	}
	if strings.Contains(err.Error(), strings.TrimSpace(noSource)) {
		return false, true
	}
	return true, is(err, berth.ErrNotFound)
}
