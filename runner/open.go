package runner

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// open brings the task to where its steps can be started: room on the machine, images, inputs, sandbox.
func (d *drive) open() (berth.Sandbox, error) {
	if d.rec.Opening != nil {
		return d.reopen()
	}
	if err := d.ended(); err != nil {
		return nil, err
	}
	if err := d.admit(false); err != nil {
		return nil, err
	}
	if err := d.recheck(); err != nil {
		return nil, err
	}
	o, err := d.prepare()
	if err != nil {
		return nil, err
	}
	if o.Spec.Grants, err = d.grants(o.Images); err != nil {
		return nil, err
	}
	return d.openAs(o, o.text())
}

// openAs records what the sandbox is to be, and opens it.
func (d *drive) openAs(o *Opening, text string) (berth.Sandbox, error) {
	e := d.event(KindOpening, "", text, o)
	e.Sandbox = &o.Spec.ID
	if err := d.append(e); err != nil {
		return nil, err
	}
	d.at("opening")
	return d.openSandbox(o.Spec)
}

// text names the images' digests.
func (o *Opening) text() string {
	var out []string
	for _, im := range o.Images {
		if im.Image.Digest != "" {
			out = append(out, fmt.Sprintf("image %s is %s", im.name(), im.Image.Digest))
		}
	}
	for _, g := range o.Spec.Grants {
		out = append(out, fmt.Sprintf("it has %s %d (%s)", g.Vendor, g.Index, g.UUID))
	}
	return strings.Join(out, ", ")
}

// reopen finds the sandbox again that a process before opened. Steps may run in it, so it waits for
// nothing, and is not kept from its work by the wish to end the task.
func (d *drive) reopen() (berth.Sandbox, error) {
	var sandbox berth.Sandbox
	err := d.retry(d.alive, func() (err error) {
		sandbox, err = d.r.cfg.Engine.Attach(d.alive, d.rec.Task.ID)
		return err
	})
	if errors.Is(err, berth.ErrNotFound) {
		return d.sandboxGone()
	} else if err != nil {
		return nil, d.leaving(fmt.Errorf("attach to sandbox: %w", err))
	}
	return sandbox, d.adopt(sandbox)
}

// sandboxGone decides how a task goes on whose sandbox is not there. Where a step was to be started,
// whatever ran and was written is gone with it.
func (d *drive) sandboxGone() (berth.Sandbox, error) {
	begun := len(d.rec.Steps) > 0
	if err := d.ended(); err != nil && !begun {
		return nil, err
	}
	if !begun {
		return d.openAgain() // the process before died before it did
	}
	if d.mayAgain() {
		d.warn("the sandbox is gone; the task is run again from its first step")
		if err := d.record(KindAgain, "", "", Stepped{Index: -1}); err != nil {
			return nil, err
		}
		return d.open()
	}
	const gone = "the sandbox is gone"
	for i := range d.rec.Steps {
		if s := &d.rec.Steps[i]; s.Exit == nil && s.Spec.ID != "" {
			exit := d.recall(i, berth.Exit{Reason: berth.Lost, Code: -1, Detail: gone + ", and nobody saw the step end"})
			if err := d.record(KindEnded, "", "", Stepped{Index: i, Exit: &exit}); err != nil {
				return nil, err
			}
		}
	}
	return nil, errors.New(gone + ", and with it what the task wrote")
}

func (d *drive) openAgain() (berth.Sandbox, error) {
	if err := d.admit(false); err != nil {
		return nil, err
	}
	if !asksDevices(&d.rec.Task) {
		return d.openSandbox(d.rec.Opening.Spec)
	}
	// Others may have been lent, and the same ones may have other nodes, after a reboot.
	o := *d.rec.Opening
	var err error
	if o.Spec.Grants, err = d.grants(o.Images); err != nil {
		return nil, err
	}
	return d.openAs(&o, "")
}

func (d *drive) openSandbox(spec berth.SandboxSpec) (sandbox berth.Sandbox, err error) {
	err = d.retry(d.stop, func() (err error) {
		sandbox, err = d.r.cfg.Engine.Open(d.stop, spec)
		return err
	})
	if err != nil {
		return nil, d.failed(fmt.Errorf("open sandbox: %w", err))
	}
	d.at("open")
	return sandbox, nil
}

func (d *drive) sandboxSpec() berth.SandboxSpec {
	spec := sandboxOf(&d.rec.Task, d.lay)
	spec.Bound, spec.Scratch = !d.rec.Detached, []string{d.dir.work()}
	return spec
}

// sandboxOf is what a task says of its sandbox.
func sandboxOf(t *berth.Task, lay *layout) berth.SandboxSpec {
	return berth.SandboxSpec{
		ID:       t.ID,
		Labels:   t.Labels,
		Limits:   t.Resources.Limits,
		Volumes:  lay.volumes,
		Network:  t.Network,
		Hostname: t.Hostname,

		CgroupParent: t.CgroupParent,
		Loose:        slices.ContainsFunc(t.Steps, loose),
	}
}

// loose reports whether a step could take its files out of a disk quota: by the ioctl of a file's owner, which the default
// profile alone is known to keep from it, or since quotas do not hold it or are its to change.
func loose(s berth.Step) bool {
	return s.Seccomp != "" || hasCap(s, "SYS_ADMIN", "SYS_RESOURCE")
}

// prepare gets all images and inputs at once.
func (d *drive) prepare() (*Opening, error) {
	o := &Opening{Spec: d.sandboxSpec(), Sources: d.rec.Sources}
	if o.Sources == nil {
		o.Sources = sources(&d.rec.Task)
	}
	for _, s := range d.rec.Task.Steps {
		same := func(im Imaged) bool { return im.is(&s) }
		if !slices.ContainsFunc(o.Images, same) {
			o.Images = append(o.Images, Imaged{Ref: s.Image, Platform: s.Platform, Fallbacks: s.Fallbacks})
		}
	}
	calls := []func(context.Context) error{}
	for i := range o.Images {
		calls = append(calls, func(ctx context.Context) (err error) {
			im := &o.Images[i]
			im.Image, err = d.firstImage(ctx, im)
			return err
		})
	}
	calls = append(calls, func(ctx context.Context) (err error) {
		o.Inputs, err = d.stage(ctx)
		return err
	})
	if err := together(d.stop, calls...); err != nil {
		return nil, d.failed(err)
	}
	for _, im := range o.Images {
		if im.Taken != "" {
			d.warn(fmt.Sprintf("image %s cannot be had, and %s is used in its place: %s", im.Ref, im.Taken, listed(im.missed)))
		}
	}
	if text := o.text(); text != "" && d.hooks.Note != nil {
		d.hooks.Note(text)
	}
	d.at("prepared")
	return o, nil
}

// firstImage finds or pulls an image or, where that cannot be had, the first that can of those that do instead.
func (d *drive) firstImage(ctx context.Context, im *Imaged) (berth.Image, error) {
	got, err := d.image(ctx, im.Ref, im.Platform)
	if err == nil || len(im.Fallbacks) == 0 || ctx.Err() != nil {
		return got, err
	}
	im.missed = []error{err}
	for _, ref := range im.Fallbacks {
		got, err := d.image(ctx, ref, im.Platform)
		if err == nil {
			im.Taken = ref
			return got, nil
		}
		if im.missed = append(im.missed, err); ctx.Err() != nil {
			break
		}
	}
	return got, noneOf(im.missed)
}

// noneOf is the error of an image that cannot be had, nor any of those that would do in its place.
func noneOf(all []error) error {
	return fmt.Errorf("none of the images can be had: %s%.0w", listed(all), all[len(all)-1])
}

func listed(all []error) string {
	text := make([]string, len(all))
	for i, err := range all {
		text[i] = err.Error()
	}
	return strings.Join(text, "; ")
}

// image finds or pulls one image. Several run at once.
func (d *drive) image(ctx context.Context, ref, platform string) (berth.Image, error) {
	puller, ok := d.r.cfg.Engine.(berth.Puller)
	if !ok {
		return berth.Image{Ref: ref, ID: ref}, nil
	}
	req := berth.ImageRequest{Ref: ref, Policy: d.rec.Task.Pull, Platform: platform, Insecure: d.rec.Task.Insecure}
	if d.hooks.Progress != nil {
		req.Progress = func(p berth.Progress) { d.hooks.Progress(ref, p) }
	}
	im, err := puller.Image(ctx, req)
	if err != nil && !strings.Contains(err.Error(), ref) {
		err = fmt.Errorf("image %s: %w", ref, err)
	}
	if err != nil {
		return im, err
	}
	return im, nil
}

// stepSpec describes the container of a step. Whoever continues the task takes it from its records instead.
func (d *drive) stepSpec(i int) berth.StepSpec {
	t, s := &d.rec.Task, &d.rec.Task.Steps[i]
	spec := stepOf(t, i)
	spec.ID = stepID(t.ID, i, d.rec.Attempts)
	spec.Image, _ = d.rec.Image(s)
	spec.Mounts = d.mounts(i)
	spec.Timeout = d.timeLeft()
	spec.LogDir = d.dir.logs(i)
	spec.Hold = d.hooks.Holds && !d.rec.Detached
	for _, rs := range d.lay.streams {
		if rs.step != i {
			continue
		}
		spec.LogLimit = -1 // the log is where the file comes from: it must be whole
		if rs.stderr {
			spec.Stderr = ""
		} else {
			spec.Stdout = ""
		}
	}
	return spec
}

// stepOf is what a task says of a step.
func stepOf(t *berth.Task, i int) berth.StepSpec {
	s := &t.Steps[i]
	return berth.StepSpec{
		Image:      berth.Image{Ref: s.Image},
		Entrypoint: s.Entrypoint,
		Command:    s.Command,
		Env:        s.Env,
		WorkingDir: s.WorkingDir,
		User:       s.User,
		Groups:     s.Groups,
		Mounts:     s.Mounts,
		Devices:    s.Devices,
		ShmSize:    s.ShmSize,
		ReadOnly:   s.ReadOnly,
		NoInit:     s.NoInit,
		TTY:        s.TTY,
		OpenStdin:  s.OpenStdin,
		Stdin:      s.Stdin,
		Stdout:     s.Stdout,
		Stderr:     s.Stderr,
		CapAdd:     s.CapAdd,
		CapDrop:    s.CapDrop,
		Seccomp:    s.Seccomp,
		AppArmor:   s.AppArmor,
		SELinux:    s.SELinux,
		Sysctls:    s.Sysctls,
		Ulimits:    s.Ulimits,
		Runtime:    s.Runtime,
		Labels:     t.Labels,
		Platform:   s.Platform,
		StopSignal: s.StopSignal,
		Grace:      grace(t),
		Ephemeral:  t.Ephemeral,
	}
}

// mounts are what a step sees beside the volumes: the inputs, what earlier steps left as streams in the
// root, and what the user asked for.
func (d *drive) mounts(i int) []berth.Mount {
	var out []berth.Mount
	for k, in := range d.rec.Task.Inputs {
		out = append(out, berth.Mount{Source: d.rec.Opening.Inputs[k].Source, Target: path.Clean(in.Path), ReadOnly: true, Copy: true})
	}
	seen := map[string]bool{}
	for _, rs := range d.lay.streams {
		if rs.step < i && rs.mount.path == "" && !seen[rs.path] {
			seen[rs.path] = true
			out = append(out, berth.Mount{Source: path.Join(d.dir.rooted(), rs.path), Target: rs.path, ReadOnly: true, Copy: true})
		}
	}
	return append(out, d.rec.Task.Steps[i].Mounts...)
}
