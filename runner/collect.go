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
	"github.com/berth-project/berth/logfile"
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
	d.saveRooted(c, i)
	if err := d.ended(); left(err) { // what was not read is in the container still, for the next berth
		return err
	}
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
	delete(d.unsaved, i) // of an attempt before this one
	var all []string
	for _, s := range d.lay.streams {
		if s.step != i {
			continue
		}
		err := d.saveStream(s)
		if err == nil {
			continue
		}
		all = append(all, fmt.Sprintf("step %d: file %s of %s was not saved: %v", i+1, s.path, s.name(), err))
	}
	text := strings.Join(all, "; ")
	switch exit := d.rec.Steps[i].Exit; {
	case text == "":
	case exit != nil && d.goesOn(i, *exit):
		if d.unsaved == nil {
			d.unsaved = map[int]string{}
		}
		d.unsaved[i] = text
	default:
		d.warn(text)
	}
}

func (d *drive) saveStream(s stream) error {
	host, rel := d.dir.rooted(), s.path[1:]
	if s.mount.path != "" {
		var err error
		if host, err = d.source(s.mount.host); err != nil {
			return err
		}
		rel = strings.TrimPrefix(s.path[len(s.mount.path):], "/")
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
	// Whole or not at all: what is there of it is no file of that name.
	tmp := path.Join(path.Dir(rel), fmt.Sprintf(".berth-%s-%d-%s.tmp", d.rec.Task.ID, s.step, s.name()))
	if err := root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a process that was killed here
		return kind(err)
	}
	out, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return kind(err)
	}
	if uid, gid := d.r.cfg.UID, d.r.cfg.GID; s.mount.path != "" && uid+gid > 0 {
		err = out.Chown(uid, gid)
	}
	if err == nil {
		_, err = io.Copy(out, in)
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = root.Rename(tmp, rel)
	}
	if err != nil {
		return kind(errors.Join(err, root.Remove(tmp)))
	}
	return d.lacks(s)
}

// lacks says what a log that a file was made from has lost on a full disk.
func (d *drive) lacks(s stream) error {
	ix, err := logfile.ReadIndex(d.dir.logs(s.step), s.name())
	switch {
	case err != nil:
		return kind(err)
	case ix.Lost >= 0:
		return fmt.Errorf("it ends after byte %d: the disk was full", ix.Lost)
	case ix.Dropped > 0:
		return fmt.Errorf("its first %d bytes are gone: the disk was full", ix.Dropped)
	}
	return nil
}

// saveRooted reads the outputs that lie in no mount out of the root of a step's container. What is not there is not
// missing yet: another step may leave it.
func (d *drive) saveRooted(c berth.Container, step int) {
	if len(d.lay.rooted) == 0 {
		return
	}
	archiver, ok := c.(berth.Archiver)
	for _, k := range d.lay.rooted {
		o := d.rec.Task.Outputs[k]
		err := fmt.Errorf("%w: this engine reads nothing out of a container's root", berth.ErrUnsupported)
		if ok {
			err = d.persist(d.now, func() error { return d.extract(archiver, path.Clean(o.Path)) })
		}
		if err != nil && left(d.ended()) {
			return // the next berth reads it
		}
		switch {
		case err == nil: // it takes the place of what an earlier step left
			for s := range step + 1 {
				err = errors.Join(err, d.read(k, s))
			}
		case errors.Is(err, berth.ErrNotFound):
			err = d.read(k, step)
		default:
			err = d.noteUnread(k, step, fmt.Errorf("output %s was not read: %w", o.Path, err))
		}
		if err != nil {
			d.warn(fmt.Sprintf("output %s: whether it was read is not noted: %v", o.Path, kind(err)))
		}
	}
}

// readOf is an output in the root of a step's container.
type readOf struct{ output, step int }

// read notes that the root of a step's container was asked for an output, whatever an earlier try came to.
func (d *drive) read(k, step int) error {
	delete(d.unread, readOf{k, step})
	return removeAll(d.dir.unread(k, step))
}

// noteUnread notes why it could not be asked, for the berth that goes on with the task should this one be killed, too.
func (d *drive) noteUnread(k, step int, why error) error {
	if d.unread == nil {
		d.unread = map[readOf]error{}
	}
	d.unread[readOf{k, step}] = why
	file := d.dir.unread(k, step)
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file+".new", []byte(why.Error()), 0o600)
	}
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	return err
}

// notRead is why outputs are missing that were not read; nil where all were.
func (d *drive) notRead() error {
	var all []error
	for _, k := range d.lay.rooted {
		for step := range d.rec.Task.Steps {
			err := d.unread[readOf{k, step}]
			if text, rerr := os.ReadFile(d.dir.unread(k, step)); err == nil && rerr == nil { // by a berth that was killed
				err = &plainError{string(text), berth.ErrUnavailable}
			}
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

func (d *drive) extract(a berth.Archiver, p string) error {
	r, err := a.Archive(d.now, p)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return unpackAt(r, d.dir.rooted(), p)
}

// unpackAt unpacks what was at a path of a container at that path below dir: all of it, or nothing.
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
	if err := untar.Whole(r, root); err != nil {
		return errors.Join(kind(err), kind(whole.RemoveAll(rel)))
	}
	return nil
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
		Writable: d.rec.Writable(),
	})
	if err != nil && d.alive.Err() != nil {
		return collected{err: errLeft{context.Cause(d.alive)}}
	}
	if unread := d.notRead(); unread != nil { // which is why others say that they are not there
		err = unread
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
			host := d.rec.Opening.Inputs[p.index].Source
			if name, here := inputPath(d.rec.Task.Inputs[p.index]); here && d.rec.Sources[name] != "" {
				if err := leads(host, host); err != nil && !errors.Is(err, berth.ErrNotFound) { // as in source
					return out, closeAll, err
				}
			}
			out = append(out, staging.Mount{Path: p.path, HostPath: host})
		case placeMount:
			host, err := d.source(p.host)
			if err != nil {
				return out, closeAll, err
			}
			out = append(out, staging.Mount{Path: p.path, HostPath: host})
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
