package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
)

// remote is what a sandbox has on a daemon whose files are not for this process: of another machine or, where a user who
// is not root may use the daemon, of root's. Its volumes are the daemon's own, and so is one more, with
// copies of what is bound into its steps. Files come and go through a container that is never started, in which all of them
// are mounted.
type remote struct {
	s     *Sandbox
	state remoteState
}

// remoteState is what must be known of it when berth comes back.
type remoteState struct {
	Here   bool           `json:"here,omitempty"`   // the daemon is on this machine: it binds this one's files
	Image  string         `json:"image,omitempty"`  // of the container through which files come and go
	Copies map[string]int `json:"copies,omitempty"` // the paths of this host that were copied, with the names of their copies
}

// remoteFile, in the directory of a sandbox, says that its volumes are the daemon's.
const remoteFile = "remote.json"

// In the container through which files come and go, volumes lie by number and then by their own names, so that archives
// of them are named as they are.
const (
	filesDir  = "/.berth"
	copiesDir = filesDir + "/copies"
	// labelFiles is on that container.
	labelFiles = "berth.files"
)

func (r *remote) file() string { return filepath.Join(r.s.e.sandboxDir(r.s.spec.ID), remoteFile) }

func (r *remote) labels() map[string]string {
	return map[string]string{LabelOwner: r.s.e.owner, LabelSandbox: r.s.spec.ID}
}

func (r *remote) volume(name string) string {
	return fmt.Sprintf("berth-%s-%s-%s", r.s.e.owner, r.s.spec.ID, name)
}

func (r *remote) container() string { return "berth-" + r.s.e.owner + "-" + r.s.spec.ID }

// make makes the volumes. That they are on the daemon is noted first.
func (r *remote) make(ctx context.Context) error {
	if err := r.keep(); err != nil {
		return err
	}
	for i := range r.s.spec.Volumes {
		if _, err := r.makeVolume(ctx, volumeName(i)); err != nil {
			return fmt.Errorf("volume %s: %w", r.s.spec.Volumes[i].Path, err)
		}
	}
	return nil
}

// makeVolume makes a volume, or finds it, and says where it lies on the daemon's machine.
func (r *remote) makeVolume(ctx context.Context, name string) (string, error) {
	ctx, cancel := r.s.e.call(ctx)
	defer cancel()
	res, err := r.s.e.api().VolumeCreate(ctx, client.VolumeCreateOptions{Name: r.volume(name), Driver: "local", Labels: r.labels()})
	if err != nil {
		return "", wrapHost(ctx, "make", err)
	}
	return res.Volume.Mountpoint, nil
}

func (r *remote) keep() error {
	if err := writeJSON(r.file(), r.state); err != nil {
		return fmt.Errorf("%w: %w", kindOf(err), err)
	}
	return nil
}

// read reads what was kept; false where the volumes are this process's. Of an empty file, as a crash may have left it, only
// that it is there is known.
func (r *remote) read() (bool, error) {
	raw, err := os.ReadFile(r.file())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("%w: %w", kindOf(err), err)
	}
	if len(raw) == 0 {
		return true, nil
	}
	return true, json.Unmarshal(raw, &r.state)
}

// with calls f with what the sandbox has on the daemon, in one process and goroutine at a time.
func (s *Sandbox) withRemote(f func(*remote) error) error {
	lock, err := lockDir(s.e.sandboxDir(s.spec.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sandbox %s: %w", s.spec.ID, berth.ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("sandbox %s: %w: %w", s.spec.ID, kindOf(err), err)
	}
	defer func() { _ = lock.Close() }()
	r := &remote{s: s}
	if _, err := r.read(); err != nil {
		return err
	}
	return f(r)
}

// open has the container through which files come and go be there, with the volumes as a sandbox begins with them.
func (r *remote) open(ctx context.Context, image string) error {
	if r.state.Image == "" && image == "" {
		return fmt.Errorf("files of sandbox %s: %w: no step of it was started", r.s.spec.ID, berth.ErrNotFound)
	}
	if r.state.Image != "" {
		cctx, cancel := r.s.e.call(ctx)
		defer cancel()
		_, err := r.s.e.api().ContainerInspect(cctx, r.container(), client.ContainerInspectOptions{})
		if err == nil {
			return r.deliverRest(ctx)
		}
		if !is(err, berth.ErrNotFound) {
			return wrapHost(cctx, "files", err)
		}
		image = r.state.Image
	}
	if err := r.makeContainer(ctx, image); err != nil {
		return err
	}
	if r.state.Image != "" {
		return r.deliverRest(ctx) // somebody has removed it meanwhile
	}
	if err := r.setModes(ctx); err != nil {
		return err
	}
	r.state.Image = image
	return r.keep()
}

func (r *remote) makeContainer(ctx context.Context, image string) error {
	labels := r.labels()
	labels[labelFiles], labels[LabelStep] = "1", "" // whatever labels the image has
	hc := &container.HostConfig{NetworkMode: "none", LogConfig: container.LogConfig{Type: "none"}}
	mounts := map[string]string{volumeName(len(r.s.spec.Volumes)): copiesDir}
	for i, v := range r.s.spec.Volumes {
		mounts[volumeName(i)] = inFiles(i, v)
	}
	for name, at := range mounts {
		hc.Mounts = append(hc.Mounts, mount.Mount{
			Type: mount.TypeVolume, Source: r.volume(name), Target: at,
			VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: r.labels()},
		})
	}
	ctx, cancel := r.s.e.call(ctx)
	defer cancel()
	_, err := r.s.e.api().ContainerCreate(ctx, client.ContainerCreateOptions{
		Name:       r.container(),
		Config:     &container.Config{Image: image, Entrypoint: []string{"/"}, Labels: labels, NetworkDisabled: true, Healthcheck: &container.HealthConfig{Test: []string{"NONE"}}},
		HostConfig: hc,
	})
	if err != nil && !is(err, berth.ErrConflict) { // made by another process, or one that died here
		return wrapHost(ctx, "files", err)
	}
	return nil
}

// inFiles is where a volume lies in the container through which files come and go.
func inFiles(i int, v berth.Volume) string {
	return path.Join(filesDir, strconv.Itoa(i), path.Base(v.Path))
}

// planMounts adds what a step mounts, once the daemon has it.
func (r *remote) planMounts(ctx context.Context, hc *container.HostConfig, step *berth.StepSpec) error {
	away := r.s.away()
	for _, m := range step.Mounts {
		if err := r.refuse(m); away && err != nil {
			return err
		}
	}
	copies := away && slices.ContainsFunc(step.Mounts, func(m berth.Mount) bool { return m.Type != berth.MountTmpfs })
	if copies || len(r.s.spec.Volumes) > 0 {
		if err := r.open(ctx, step.Image.ID); err != nil {
			return err
		}
	}
	for i, v := range r.s.spec.Volumes {
		hc.Mounts = append(hc.Mounts, r.mountVolume(i, v))
	}
	return planOwn(hc, step, func(m berth.Mount) (mount.Mount, error) {
		if m.Type == berth.MountTmpfs || !away {
			return planMount(m)
		}
		return r.mountCopy(ctx, m)
	})
}

// mountVolume is how a step gets a volume: with what its image holds there, where it is to be copied and no step had it.
func (r *remote) mountVolume(i int, v berth.Volume) mount.Mount {
	return mount.Mount{
		Type: mount.TypeVolume, Source: r.volume(volumeName(i)), Target: v.Path,
		VolumeOptions: &mount.VolumeOptions{NoCopy: !v.CopyUp || r.s.filled(), Labels: r.labels()},
	}
}

// mountCopy copies what a mount has here to the daemon, once, and mounts the copy, read-only.
func (r *remote) mountCopy(ctx context.Context, m berth.Mount) (mount.Mount, error) {
	at, err := r.makeVolume(ctx, volumeName(len(r.s.spec.Volumes)))
	if err != nil {
		return mount.Mount{}, fmt.Errorf("copy of %s: %w", m.Source, err)
	}
	if at == "" {
		return mount.Mount{}, fmt.Errorf("copy of %s: %w: the daemon does not say where its volumes lie", m.Source, berth.ErrUnsupported)
	}
	n, done := r.state.Copies[m.Source]
	if !done {
		n = len(r.state.Copies)
		if err := r.put(ctx, copiesDir, func(w io.Writer) error { return archiveOf(w, m.Source, strconv.Itoa(n)) }); err != nil {
			return mount.Mount{}, fmt.Errorf("copy %s to the daemon: %w", m.Source, err)
		}
		if r.state.Copies == nil {
			r.state.Copies = map[string]int{}
		}
		r.state.Copies[m.Source] = n
		if err := r.keep(); err != nil {
			return mount.Mount{}, err
		}
	}
	return mount.Mount{
		Type: mount.TypeBind, Source: path.Join(at, strconv.Itoa(n)), Target: path.Clean(m.Target), ReadOnly: true,
		BindOptions: &mount.BindOptions{Propagation: mount.PropagationRSlave}, // as daemons want it of what is theirs
	}, nil
}

// refuse refuses what cannot be mounted on another machine.
func (r *remote) refuse(m berth.Mount) error {
	if m.Type == berth.MountTmpfs || m.Copy && m.ReadOnly {
		return nil
	}
	return r.s.e.notHere(fmt.Sprintf("bind of %s at %s", m.Source, m.Target))
}

// put unpacks an archive in a directory of the container through which files come and go.
func (r *remote) put(ctx context.Context, dir string, write func(io.Writer) error) error {
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() { // ends with the reader
		err := write(pw)
		_ = pw.CloseWithError(err)
		written <- err
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(r.s.e.cfg.Stall, func() {
		cancel(fmt.Errorf("%w: the daemon has taken nothing for %v", berth.ErrUnavailable, r.s.e.cfg.Stall))
	})
	defer stalled.Stop()
	_, err := r.s.e.api().CopyToContainer(ctx, r.container(), client.CopyToContainerOptions{
		DestinationPath: dir, Content: moving{pr, func() { stalled.Reset(r.s.e.cfg.Stall) }},
	})
	if err != nil {
		err = wrapHost(ctx, "write", err)
	}
	_ = pr.CloseWithError(io.ErrClosedPipe)
	if werr := <-written; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		return werr
	}
	return err
}

// putCopy puts a file of this machine at a path of the steps, in one of the volumes, where the user of the step has it, if
// that is a number.
func (s *Sandbox) putCopy(ctx context.Context, file, p, user string) error {
	return s.withRemote(func(r *remote) error { return r.putCopy(ctx, file, p, user) })
}

func (r *remote) putCopy(ctx context.Context, file, p, user string) error {
	i, rel, err := r.s.inVolume(p)
	if err != nil {
		return err
	}
	u, g, _ := strings.Cut(user, ":")
	uid, _ := strconv.Atoi(u) // a name, which only the image knows, is root's file
	gid, _ := strconv.Atoi(g)
	err = r.put(ctx, inFiles(i, r.s.spec.Volumes[i]), func(w io.Writer) error { return archiveFile(w, file, rel, uid, gid) })
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// inVolume is the number of the volume in which a path of the steps lies, and the path there; "." is the volume itself.
func (s *Sandbox) inVolume(p string) (int, string, error) {
	p = path.Clean("/" + p)
	best, below := -1, ""
	for i, v := range s.spec.Volumes {
		rel, ok := strings.CutPrefix(p+"/", v.Path+"/")
		if ok && (best < 0 || len(v.Path) > len(s.spec.Volumes[best].Path)) {
			best, below = i, path.Clean("./"+rel)
		}
	}
	if best < 0 {
		return 0, "", fmt.Errorf("%s: %w: it lies in no volume of the sandbox", p, berth.ErrInvalid)
	}
	return best, below, nil
}

// copyFile is what gets a stream of a step that a volume on another machine gets at its end.
func (l *life) copyFile(stream string) string { return filepath.Join(l.dir, "copy."+stream) }

// deliver gives volumes of the daemon's the streams of a step that has ended. What they cannot be given now they get before
// anybody looks into them.
func (l *life) deliver(ctx context.Context, r *record) {
	l.mu.Lock()
	sb := l.sb
	l.mu.Unlock()
	if sb == nil || !sb.remote || len(streamFiles(&r.Spec)) == 0 {
		return
	}
	if err := sb.withRemote(func(far *remote) error { return far.deliver(ctx, l, &r.Spec) }); err != nil {
		l.e.cfg.Logger.Warn("files of the standard streams are not in their volumes yet", "container", l.String(), "error", err)
	}
}

// deliverLate is deliver for a step that is to be removed.
func (l *life) deliverLate(ctx context.Context, sb *Sandbox) error {
	if !sb.remote || !exists(l.copyFile("stdout")) && !exists(l.copyFile("stderr")) {
		return nil
	}
	return sb.withRemote(func(far *remote) error { return far.open(ctx, "") })
}

// deliver gives volumes what is here of the streams of an ended step, once.
func (r *remote) deliver(ctx context.Context, l *life, step *berth.StepSpec) error {
	for stream, p := range streamFiles(step) {
		file := l.copyFile(stream)
		if !exists(file) {
			continue // they have it
		}
		if err := r.putCopy(ctx, file, p, step.User); err != nil {
			return err
		}
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("%w: %w", kindOf(err), err)
		}
	}
	return nil
}

// deliverRest gives volumes what they could not be given when steps ended.
func (r *remote) deliverRest(ctx context.Context) error {
	dir := filepath.Join(r.s.e.sandboxDir(r.s.spec.ID), "steps")
	steps, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", kindOf(err), err)
	}
	for _, d := range steps {
		if !written(filepath.Join(dir, d.Name(), exitFile)) {
			continue
		}
		l := r.s.e.life(r.s.spec.ID, d.Name())
		rec, err := l.readRecord()
		if err != nil {
			continue // it was removed meanwhile
		}
		if err := r.deliver(ctx, l, &rec.Spec); err != nil {
			return err
		}
	}
	return nil
}

// setModes gives the volumes the modes that they begin with.
func (r *remote) setModes(ctx context.Context) error {
	for i, v := range r.s.spec.Volumes {
		at := inFiles(i, v)
		if err := r.put(ctx, path.Dir(at), func(w io.Writer) error { return archiveDir(w, path.Base(at), volumeMode(v)) }); err != nil {
			return fmt.Errorf("volume %s: %w", v.Path, err)
		}
	}
	return nil
}

// ArchiveVolume reads a file or directory of a volume, where that is the daemon's.
func (s *Sandbox) ArchiveVolume(ctx context.Context, p string) (io.ReadCloser, error) {
	if !s.remote {
		return nil, fmt.Errorf("%s: %w: the volumes of sandbox %s are directories of this machine", p, berth.ErrUnsupported, s.spec.ID)
	}
	i, rel, err := s.inVolume(p)
	if err != nil {
		return nil, err
	}
	if err := s.withRemote(func(r *remote) error { return r.open(ctx, "") }); err != nil {
		return nil, err
	}
	return s.e.stream(ctx, p, s.e.cfg.Stall, func(ctx context.Context) (io.ReadCloser, error) {
		res, err := s.e.api().CopyFromContainer(ctx, (&remote{s: s}).container(), client.CopyFromContainerOptions{
			SourcePath: path.Join(inFiles(i, s.spec.Volumes[i]), rel),
		})
		return res.Content, belowFile(err)
	})
}

// isRemote reports whether the container is on another machine.
func (l *life) isRemote() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sb != nil && l.sb.away()
}
