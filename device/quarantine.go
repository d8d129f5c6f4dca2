package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// Fault is why a device is not lent: it has reported an error that it does not recover from by itself.
type Fault struct {
	UUID   string    `json:"uuid"` // of the device, or the key of the slice
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"`
	// Released is when somebody said that the device can be lent again; older faults of it count no more.
	Released time.Time `json:"released,omitzero"`
	// Standing is set where the driver tells of a condition that the device is in, of which it does not tell since when. It
	// counts when it is seen first, and again when it has changed.
	Standing *Standing `json:"standing,omitempty"`
}

// Standing is a condition of a device, as its driver told it.
type Standing struct {
	Reason string    `json:"reason"` // "" is that there is nothing
	Time   time.Time `json:"time"`   // when it was seen first
}

func (f Fault) String() string {
	return fmt.Sprintf("%s since %s%s", f.Reason, f.Time.Local().Format(time.DateTime), f.besides())
}

// besides tells the condition that the device is in where that is not the reason that holds it: a release is of both.
func (f Fault) besides() string {
	if f.Standing == nil || f.Standing.Reason == "" || f.Standing.Reason == f.Reason {
		return ""
	}
	return "; its driver says: " + f.Standing.Reason
}

// Quarantine is where faults are noted: directories with a file for each device. All are read; notes go to the first
// that can be written. The first should be the host's, beside the ledger, and one that ends with the boot: what a
// device cannot recover from, a reboot mostly does.
type Quarantine struct {
	Dirs []string
	Boot time.Time // when the host was started, if that is known
}

// QuarantineOf is where faults of a host's devices are noted: for the whole host where root writes, else in data
// directories of berth.
func QuarantineOf(h *Host, data ...string) Quarantine {
	q := Quarantine{Dirs: []string{filepath.Join(h.Root(), "run/berth/quarantine")}}
	if h.Root() == "/" {
		q.Boot = bootTime()
	}
	for _, dir := range data {
		q.Dirs = append(q.Dirs, filepath.Join(dir, "gpu", "quarantine"))
	}
	return q
}

// Held returns the faults that keep devices from being lent, by UUID. What cannot be read counts for nothing.
func (q Quarantine) Held() map[string]Fault { return q.See() }

// Hold notes faults that were found just now, and returns all that keep devices from being lent: these too where they could
// not be noted, of which the error tells.
func (q Quarantine) Hold(found ...Fault) (map[string]Fault, error) {
	err := q.Put(found...)
	return q.See(found...), err
}

// See returns what Hold does, and notes nothing.
func (q Quarantine) See(found ...Fault) map[string]Fault {
	held := map[string]Fault{}
	noted := q.read()
	for _, f := range found {
		if f, is := noted[f.UUID].then(f, q.Boot); is {
			noted[f.UUID] = f
		}
	}
	for uuid, f := range noted {
		if f.holds() {
			held[uuid] = f
		}
	}
	return held
}

func (f Fault) holds() bool { return f.Time.After(f.Released) }

// then is what is to be noted of a device when a fault is found, where this has been noted; false if that changes nothing.
// A condition that was seen before the host was started last, and is over, holds it no longer: the driver was started anew with it.
func (f Fault) then(found Fault, boot time.Time) (note Fault, changed bool) {
	switch stands := found.Standing; {
	case stands == nil:
		found.Standing = f.Standing
	case stands.Reason == "" && f.holds() && f.Standing != nil && f.Reason == f.Standing.Reason && f.Time.Before(boot):
		f.Released, f.Standing = f.Time, stands
		return f, true
	case f.Standing == nil && stands.Reason == "", f.Standing != nil && f.Standing.Reason == stands.Reason:
		return f, false
	case f.holds() || stands.Reason == "": // what holds it goes on to, until it is released
		if f.Standing != nil && f.Reason == f.Standing.Reason && stands.Reason != "" {
			f.Reason = stands.Reason
		}
		f.Standing = stands
		return f, true
	}
	if !found.Time.After(f.Time) || !found.Time.After(f.Released) {
		return f, false
	}
	found.Released = f.Released
	return found, true
}

// FaultOf returns the fault that keeps a unit from being lent: its own, or its device's.
func FaultOf(held map[string]Fault, u Unit) (f Fault, is bool) {
	for _, id := range []string{u.Key(), u.UUID(), u.Device.UUID} {
		if f, is = held[id]; is {
			return f, true
		}
	}
	return f, false
}

// read returns what is noted of each device, the newest from all directories.
func (q Quarantine) read() map[string]Fault {
	noted := map[string]Fault{}
	for _, dir := range q.Dirs {
		files, _ := filepath.Glob(filepath.Join(dir, "*.json"))
		for _, file := range files {
			var f Fault
			data, err := os.ReadFile(file)
			if err != nil || json.Unmarshal(data, &f) != nil || noteName(f.UUID) != filepath.Base(file) {
				continue
			}
			was := noted[f.UUID]
			if was.Released.After(f.Released) {
				f.Released = was.Released
			}
			if was.Time.After(f.Time) {
				f.Time, f.Reason = was.Time, was.Reason
			}
			if f.Standing == nil || was.Standing != nil && was.Standing.Time.After(f.Standing.Time) {
				f.Standing = was.Standing
			}
			noted[f.UUID] = f
		}
	}
	return noted
}

// Put notes faults. One that is older than what is noted of its device, or than its release, changes nothing.
func (q Quarantine) Put(faults ...Fault) error {
	noted := q.read()
	var errs []error
	for _, f := range faults {
		if f, is := noted[f.UUID].then(f, q.Boot); is {
			noted[f.UUID] = f
			errs = append(errs, q.write(f))
		}
	}
	return errors.Join(errs...)
}

// Release has a device lent again. ErrNotFound if it is not held.
func (q Quarantine) Release(uuid string) error {
	f, ok := q.Held()[uuid]
	if !ok {
		return fmt.Errorf("release GPU %s: %w: it is not in quarantine", uuid, berth.ErrNotFound)
	}
	f.Released = time.Now()
	return q.write(f)
}

// write notes a fault in the first directory that lets us.
func (q Quarantine) write(f Fault) error {
	err := fmt.Errorf("note of GPU %s: %w: there is no place for it", f.UUID, berth.ErrUnavailable)
	for _, dir := range q.Dirs {
		if err = writeNote(dir, f); err == nil {
			return nil
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: %w", berth.ErrDenied, err)
	}
	return err
}

func writeNote(dir string, f Fault) error {
	data, err := json.Marshal(f)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, noteName(f.UUID)), append(data, '\n'), 0o644)
}

// noteName is the file name of a device's note.
func noteName(uuid string) string {
	return strings.Map(func(r rune) rune {
		if r == '/' || r == 0 {
			return '_'
		}
		return r
	}, uuid) + ".json"
}

// replaceFile writes a file that appears whole, or not at all.
func replaceFile(name string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*.tmp")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// without returns the devices that are not held: a device with all its slices, or a slice.
func without(devices []Device, held map[string]Fault) []Device {
	if len(held) == 0 {
		return devices
	}
	var rest []Device
	for _, d := range devices {
		if _, is := held[d.UUID]; is {
			continue
		}
		n := len(d.Slices)
		whole := d
		d.Slices = slices.DeleteFunc(slices.Clone(d.Slices), func(s Slice) bool {
			_, is := FaultOf(held, Unit{Device: whole, Slice: &s})
			return is
		})
		if n == 0 || len(d.Slices) > 0 {
			rest = append(rest, d)
		}
	}
	return rest
}
