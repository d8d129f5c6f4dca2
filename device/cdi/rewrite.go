package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

// Rewrite edits an OCI spec in the form of its file, config.json: what edit changes of the parts that CDI knows is
// changed, and all else stays as it is written, with what other versions of the standard have there. The spec
// that edit gets has only those parts: environment and user of the process, mounts, hooks and, of Linux, devices,
// network devices, intelRdt and namespaces. It must change none of them in place. An error of edit is returned as
// it is; one of the file is of the kind berth.ErrInvalid.
func Rewrite(config []byte, edit func(*oci.Spec) error) ([]byte, error) {
	var d document
	if err := d.read(config); err != nil {
		return nil, fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	}
	after := d.spec
	if err := edit(&after); err != nil {
		return nil, err
	}
	if err := d.update(after); err != nil {
		return nil, fmt.Errorf("write OCI spec: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, d.top.text(), "", "  "); err != nil {
		return nil, fmt.Errorf("write OCI spec: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// document is a config.json: the objects in it that have parts that change, and these parts.
type document struct {
	top, process, user, linux, resources object
	spec                                 oci.Spec
}

func (d *document) read(config []byte) (err error) {
	if d.top, err = parseObject(config); err != nil {
		return err
	}
	if err := d.top.get("ociVersion", &d.spec.Version); err != nil {
		return err
	}
	if d.spec.Version == "" {
		return errors.New("it has no ociVersion")
	}
	if err := d.readProcess(); err != nil {
		return err
	}
	if err := d.readLinux(); err != nil {
		return err
	}
	if err := d.top.get("mounts", &d.spec.Mounts); err != nil {
		return err
	}
	return d.top.get("hooks", &d.spec.Hooks)
}

func (d *document) readProcess() (err error) {
	if d.process, err = d.top.child("process"); err != nil || d.process == nil {
		return err
	}
	p := &oci.Process{}
	d.spec.Process = p
	if d.user, err = d.process.child("user"); err != nil {
		return fmt.Errorf("process: %w", err)
	}
	return errors.Join(d.process.get("user", &p.User), d.process.get("env", &p.Env))
}

func (d *document) readLinux() (err error) {
	if d.linux, err = d.top.child("linux"); err != nil || d.linux == nil {
		return err
	}
	l := &oci.Linux{}
	d.spec.Linux = l
	if d.resources, err = d.linux.child("resources"); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	if d.resources != nil {
		l.Resources = &oci.LinuxResources{}
		err = d.resources.get("devices", &l.Resources.Devices)
	}
	return errors.Join(err, d.linux.get("devices", &l.Devices), d.linux.get("netDevices", &l.NetDevices),
		d.linux.get("intelRdt", &l.IntelRdt), d.linux.get("namespaces", &l.Namespaces))
}

// update writes what has changed back into the objects.
func (d *document) update(after oci.Spec) error {
	var before, now oci.Process
	if d.spec.Process != nil {
		before = *d.spec.Process
	}
	if after.Process != nil {
		now = *after.Process
	}
	err := errors.Join(
		change(&d.process, "env", before.Env, now.Env),
		change(&d.user, "additionalGids", before.User.AdditionalGids, now.User.AdditionalGids),
		change(&d.top, "mounts", d.spec.Mounts, after.Mounts),
		change(&d.top, "hooks", d.spec.Hooks, after.Hooks),
		d.updateLinux(after.Linux),
	)
	if err != nil {
		return err
	}
	// The inner ones first: they are parts of the others.
	putBack(&d.process, "user", d.user)
	putBack(&d.top, "process", d.process)
	putBack(&d.linux, "resources", d.resources)
	putBack(&d.top, "linux", d.linux)
	return nil
}

func (d *document) updateLinux(after *oci.Linux) error {
	var before, now oci.Linux
	if d.spec.Linux != nil {
		before = *d.spec.Linux
	}
	if after != nil {
		now = *after
	}
	rules := func(l oci.Linux) []oci.LinuxDeviceCgroup {
		if l.Resources == nil {
			return nil
		}
		return l.Resources.Devices
	}
	return errors.Join(
		change(&d.linux, "devices", before.Devices, now.Devices),
		change(&d.linux, "netDevices", before.NetDevices, now.NetDevices),
		change(&d.linux, "intelRdt", before.IntelRdt, now.IntelRdt),
		change(&d.resources, "devices", rules(before), rules(now)),
	)
}

// change writes a member that is not as it was.
func change[T any](in *object, key string, before, after T) error {
	if reflect.DeepEqual(before, after) || isZeroLength(before) && isZeroLength(after) {
		return nil
	}
	return in.encode(key, after)
}

func isZeroLength(v any) bool {
	r := reflect.ValueOf(v)
	return (r.Kind() == reflect.Slice || r.Kind() == reflect.Map) && r.Len() == 0
}

// putBack writes an object back into the one that it is a member of. One that was not there and has got nothing stays
// away.
func putBack(in *object, key string, of object) {
	if of != nil {
		in.set(key, of.text())
	}
}
