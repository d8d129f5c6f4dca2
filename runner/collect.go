package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/runner/untar"
	"github.com/berth-project/berth/staging"
)

// collected is what became of the outputs. An output that is missing after a failed step is a warning; after
// success it is the task's failure.
type collected struct {
	files []berth.OutputFile
	err   error
}

// tidyStep saves what must outlive the container of an ended step, and removes it. It may be called again.
func (d *drive) tidyStep(sandbox berth.Sandbox, i int) error {
	id := d.rec.Steps[i].Spec.ID
	last := i == len(d.rec.Task.Steps)-1
	if d.rec.Outcome != nil || len(d.lay.rooted) == 0 && len(d.lay.streams) == 0 && (last || d.rec.Task.Keep) {
		return nil // the end of the sandbox removes it
	}
	var c berth.Container
	err := d.retry(d.alive, func() (err error) {
		c, err = sandbox.Container(d.alive, id)
		return err
	})
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	} else if err != nil {
		return d.leaving(fmt.Errorf("step %d: %w", i+1, err))
	}
	d.saveStreams(i)
	d.saveRooted(c)
	d.at("step saved")
	if last || d.rec.Task.Keep {
		return nil
	}
	if err := d.retry(d.alive, func() error { return c.Remove(d.alive) }); err != nil {
		return d.leaving(fmt.Errorf("remove container of step %d: %w", i+1, err))
	}
	d.at("step removed")
	return nil
}

// saveStreams puts what a step wrote to where its stdout and stderr files are expected, for those that lie
// in no volume.
func (d *drive) saveStreams(i int) {
	for _, s := range d.lay.streams {
		if s.step != i {
			continue
		}
		if err := d.saveStream(s); err != nil {
			d.warn(fmt.Sprintf("step %d: %s was not saved: %v", i+1, s.path, err))
		}
	}
}

func (d *drive) saveStream(s stream) error {
	host, rel := d.dir.rooted(), s.path[1:]
	if s.mount.path != "" {
		host, rel = s.mount.host, strings.TrimPrefix(s.path[len(s.mount.path):], "/")
	} else if err := os.MkdirAll(host, 0o700); err != nil {
		return kind(err)
	}
	// The container may have changed what lies in the mount: a link there leads nowhere outside it.
	root, err := os.OpenRoot(host)
	if err != nil {
		return kind(err)
	}
	defer func() { _ = root.Close() }()
	if err := root.MkdirAll(path.Dir(rel), 0o755); err != nil {
		return kind(err)
	}
	in, err := os.Open(filepath.Join(d.dir.logs(s.step), s.name()))
	if err != nil {
		return kind(err)
	}
	defer func() { _ = in.Close() }()
	if err := root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return kind(err)
	}
	out, err := root.OpenFile(rel, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return kind(err)
	}
	if uid, gid := d.r.cfg.UID, d.r.cfg.GID; s.mount.path != "" && uid+gid > 0 {
		err = out.Chown(uid, gid)
	}
	if err == nil {
		_, err = io.Copy(out, in)
	}
	return kind(errors.Join(err, out.Close()))
}

// saveRooted reads the outputs that lie in no mount out of a container's root. What is not there is not
// missing yet: another step may leave it.
func (d *drive) saveRooted(c berth.Container) {
	if len(d.lay.rooted) == 0 {
		return
	}
	archiver, ok := c.(berth.Archiver)
	for _, k := range d.lay.rooted {
		o := d.rec.Task.Outputs[k]
		err := fmt.Errorf("%w: this engine reads nothing out of a container's root", berth.ErrUnsupported)
		if ok {
			err = d.extract(archiver, path.Clean(o.Path))
		}
		if err != nil && !errors.Is(err, berth.ErrNotFound) {
			d.warn(fmt.Sprintf("output %s was not read: %v", o.Path, err))
		}
	}
}

func (d *drive) extract(a berth.Archiver, p string) error {
	r, err := a.Archive(d.alive, p)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return unpackAt(r, d.dir.rooted(), p)
}

// unpackAt unpacks what was at a path of a container at that path below dir.
func unpackAt(r io.Reader, dir, p string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return kind(err)
	}
	// What another output left above it may be a link, to anywhere.
	whole, err := os.OpenRoot(dir)
	if err != nil {
		return kind(err)
	}
	defer func() { _ = whole.Close() }()
	rel := strings.TrimPrefix(p, "/")
	if err := whole.MkdirAll(path.Dir(rel), 0o700); err != nil {
		return kind(err)
	}
	if err := whole.RemoveAll(rel); err != nil { // of an earlier step
		return kind(err)
	}
	root, err := whole.OpenRoot(path.Dir(rel))
	if err != nil {
		return kind(err)
	}
	defer func() { _ = root.Close() }()
	return kind(untar.Into(r, root))
}

// collect collects every output that is there.
func (d *drive) collect(sandbox berth.Sandbox) collected {
	if err := d.removeTemporary(); err != nil {
		d.warn("what a berth that was killed left beside outputs could not be removed: " + err.Error())
	}
	if len(d.rec.Task.Outputs) == 0 {
		return collected{}
	}
	if d.now.Err() != nil {
		if d.alive.Err() != nil {
			return collected{err: errLeft{context.Cause(d.alive)}}
		}
		d.warn("outputs were not collected: the task was to end at once")
		return collected{}
	}
	d.at("collecting")
	mounts, closeAll, err := d.mounted(sandbox)
	defer closeAll()
	if err != nil {
		return collected{err: d.leaving(fmt.Errorf("outputs: %w", err))}
	}
	view, err := staging.NewView(mounts...)
	if err != nil {
		return collected{err: fmt.Errorf("outputs: %w", err)}
	}
	files, err := staging.Collect(d.now, view, d.rec.Task.Outputs, staging.CollectOptions{
		UID: d.r.cfg.UID, GID: d.r.cfg.GID, Journal: d.journal, Warn: d.warn,
	})
	if err != nil && d.alive.Err() != nil {
		return collected{err: errLeft{context.Cause(d.alive)}}
	}
	if err != nil && (d.failedStep() >= 0 || len(d.rec.exits()) < len(d.rec.Task.Steps)) {
		for _, line := range lines(err) {
			d.warn(line)
		}
		err = nil
	}
	d.at("collected")
	return collected{files: files, err: err}
}

// journal notes the name of a temporary file beside an output, before it is made.
func (d *drive) journal(tmp string) error {
	f, err := os.OpenFile(d.dir.temporary(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return kind(err)
	}
	_, err = f.Write(append(encode(tmp), '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return kind(err)
	}
	d.at("output")
	return nil
}

// removeTemporary removes the temporary files that the journal names.
func (d *drive) removeTemporary() error {
	data, err := os.ReadFile(d.dir.temporary())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return kind(err)
	}
	var paths []string
	for line := range bytes.Lines(data) {
		var p string
		if json.Unmarshal(line, &p) == nil { // the last line may be half written: what it names was not made
			paths = append(paths, p)
		}
	}
	if err := staging.RemoveLeftovers(paths); err != nil {
		return err
	}
	return kind(os.Remove(d.dir.temporary()))
}

// lines are the errors that were joined into err.
func lines(err error) (out []string) {
	if j, ok := err.(interface{ Unwrap() []error }); ok && strings.Contains(err.Error(), "\n") {
		for _, e := range j.Unwrap() {
			out = append(out, lines(e)...)
		}
		return out
	}
	return []string{err.Error()}
}

// mounted is what the containers saw, as far as it is still there.
func (d *drive) mounted(sandbox berth.Sandbox) (out []staging.Mount, closeAll func(), err error) {
	closeAll = func() {
		for _, m := range out {
			if m.Root != nil {
				_ = m.Root.Close()
			}
		}
	}
	if there(d.dir.rooted()) {
		out = append(out, staging.Mount{Path: "/", HostPath: d.dir.rooted()})
	}
	for _, p := range d.lay.places {
		switch p.kind {
		case placeVolume:
			root, err := sandbox.Volume(d.now, p.path)
			if a, ok := sandbox.(berth.VolumeArchiver); ok && errors.Is(err, berth.ErrUnsupported) {
				root, err = d.mirrored(a, p.path)
			}
			if err != nil {
				return out, closeAll, fmt.Errorf("volume %s: %w", p.path, err)
			}
			out = append(out, staging.Mount{Path: p.path, Root: root})
		case placeInput:
			out = append(out, staging.Mount{Path: p.path, HostPath: d.rec.Opening.Inputs[p.index].Source})
		case placeMount:
			out = append(out, staging.Mount{Path: p.path, HostPath: p.host})
		case placeTmpfs: // it ended with its step
		}
	}
	return out, closeAll, nil
}

// stage brings all inputs in.
func (d *drive) stage(ctx context.Context) ([]Staged, error) {
	if err := d.dir.removeWork(); err != nil { // half of what a process before staged
		return nil, fmt.Errorf("inputs: %w", kind(err))
	}
	if len(d.rec.Task.Inputs) == 0 {
		return nil, nil
	}
	if err := os.MkdirAll(d.dir.inputs(), 0o700); err != nil {
		return nil, fmt.Errorf("inputs: %w", kind(err))
	}
	got, err := staging.Fetch(ctx, d.rec.Task.Inputs, d.dir.inputs(), d.r.cfg.Fetch)
	if err != nil {
		return nil, err
	}
	var staged []Staged
	for _, s := range got {
		staged = append(staged, Staged{Source: s.HostPath, Type: s.Type})
	}
	return staged, nil
}
