package runner

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/store"
)

// Kind says what happened to a task.
type Kind string

// The kinds of event, in the order in which a task without trouble meets them.
const (
	KindSubmitted Kind = store.Submitted // QUEUED
	KindWaiting   Kind = "waiting"       // the text says for what
	KindAdmitted  Kind = "admitted"      // Admitted: what it asks for is lent to it; INITIALIZING
	KindOpening   Kind = "opening"       // Opening: images and inputs are there; intent before effect
	KindStarting  Kind = "starting"      // Starting: intent before effect
	KindStarted   Kind = "started"       // Stepped; RUNNING
	KindEnded     Kind = "ended"         // Stepped with Exit; recorded before the container is removed
	KindAgain     Kind = "again"         // Stepped: a lost step, or the whole where Index is -1, is run again
	KindCancel    Kind = "cancel"        // Cancel; CANCELING
	KindOutcome   Kind = "outcome"       // berth.Result: decided, but something of the task is left
	KindFinal     Kind = "final"         // the final state, with the result
	KindClosed    Kind = "closed"        // a sandbox that outlived its task is gone
	KindWarning   Kind = "warning"       // the text is for people
)

// Event is what the runner puts into store.Event.Data.
type Event struct {
	Text string          `json:"text,omitempty"` // one line for people
	Data json.RawMessage `json:"data,omitempty"` // of the kind
}

// The data of events.
type (
	// Admitted is the data of KindAdmitted.
	Admitted struct {
		Lease   string          `json:"lease,omitempty"` // "" where nothing was asked for
		Devices []ledger.Device `json:"devices,omitempty"`
	}
	// Staged is an input that can be mounted.
	Staged struct {
		Source string         `json:"source"` // host path
		Type   berth.FileType `json:"type"`   // as found
	}
	// Imaged is what an image was resolved to.
	Imaged struct {
		Ref      string `json:"ref"` // as the step names it
		Platform string `json:"platform,omitempty"`
		// Fallbacks are tried in their order where Ref cannot be had.
		Fallbacks []string    `json:"fallbacks,omitempty"`
		Taken     string      `json:"taken,omitempty"` // the one of Fallbacks that was taken; "" for Ref itself
		Image     berth.Image `json:"image"`

		missed []error // why those before it could not be had
	}
	// Opening is the data of KindOpening.
	Opening struct {
		Spec   berth.SandboxSpec `json:"spec"`
		Images []Imaged          `json:"images"`
		Inputs []Staged          `json:"inputs,omitempty"` // in the order of the task's
		// Sources are where what the task names of this host to be mounted led, before it ran at all.
		Sources map[string]string `json:"sources,omitempty"`
	}
	// Starting is the data of KindStarting.
	Starting struct {
		Index  int                   `json:"index"`
		Spec   berth.StepSpec        `json:"spec"`
		Engine string                `json:"engine"`
		Disk   berth.DiskEnforcement `json:"disk_enforcement"`
	}
	// Stepped is the data of KindStarted, KindEnded and KindAgain.
	Stepped struct {
		Index   int         `json:"index"`
		Runtime string      `json:"runtime,omitempty"` // that started it, where the container says so
		Exit    *berth.Exit `json:"exit,omitempty"`
		Broken  bool        `json:"broken,omitempty"` // again, since a daemon has said that its host is broken
	}
	// Cancel is the data of KindCancel.
	Cancel struct {
		Now bool      `json:"now,omitempty"` // without grace, and without collecting outputs
		At  time.Time `json:"-"`             // of the event
	}
)

// Record is what the store knows of a task.
type Record struct {
	Task     berth.Task
	Detached bool // its containers outlive the process that drives it
	State    berth.State
	Created  time.Time
	Result   *berth.Result // of a task that has ended
	Sandbox  string        // that is to be closed; ""

	Admitted *Admitted
	Opening  *Opening
	Engine   string                // of the last step that was to be started
	Disk     berth.DiskEnforcement // likewise
	Steps    []StepRecord          // of each step that was to be started, by index
	Attempts int                   // how often something was run again
	Broken   bool                  // it was, once, since a daemon has said that its host is broken
	Cancel   *Cancel
	Outcome  *berth.Result     // decided, perhaps not final
	Sources  map[string]string // of the first opening
	Log      []Line            // what there is to tell people, oldest first
}

// StepRecord is what is known of one step.
type StepRecord struct {
	Spec    berth.StepSpec // its ID is "" after a lost step was given up to be run again
	Started bool
	Begun   time.Time // when it was seen to have started; zero where nobody saw it
	Runtime string    // that started it; "" where nobody saw it
	Exit    *berth.Exit
}

// Line is a line of a task's system log.
type Line struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
	Warn bool      `json:"warning,omitempty"`
}

// Fold reads the events of a task.
func Fold(r store.Record, events []store.Event) (*Record, error) {
	rec := &Record{Task: r.Task, Detached: r.Detached, State: r.State, Created: r.Created, Result: r.Result, Sandbox: r.Sandbox}
	for _, e := range events {
		if err := rec.add(e); err != nil {
			return nil, fmt.Errorf("event %d (%s) of task %s: %w", e.Seq, e.Kind, r.ID, err)
		}
	}
	return rec, nil
}

func (rec *Record) add(se store.Event) error {
	if se.State != "" {
		rec.State = se.State
	}
	if se.Result != nil {
		rec.Result = se.Result
	}
	if se.Sandbox != nil {
		rec.Sandbox = *se.Sandbox
	}
	var e Event
	if se.Data != nil {
		if err := json.Unmarshal(se.Data, &e); err != nil {
			return err
		}
	}
	if e.Text != "" {
		rec.Log = append(rec.Log, Line{Time: se.Time, Text: e.Text, Warn: Kind(se.Kind) == KindWarning})
	}
	switch Kind(se.Kind) {
	case KindAdmitted:
		return set(e.Data, &rec.Admitted)
	case KindOpening:
		if err := set(e.Data, &rec.Opening); err != nil {
			return err
		}
		if rec.Sources == nil {
			rec.Sources = rec.Opening.Sources
		}
	case KindStarting:
		s := Starting{}
		if err := json.Unmarshal(e.Data, &s); err != nil {
			return err
		}
		*rec.step(s.Index) = StepRecord{Spec: s.Spec}
		rec.Engine, rec.Disk = s.Engine, s.Disk
	case KindStarted, KindEnded:
		s := Stepped{}
		if err := json.Unmarshal(e.Data, &s); err != nil {
			return err
		}
		st := rec.step(s.Index)
		st.Started, st.Exit = true, s.Exit
		if Kind(se.Kind) == KindStarted {
			st.Begun, st.Runtime = se.Time, s.Runtime
		}
	case KindAgain:
		s := Stepped{}
		if err := json.Unmarshal(e.Data, &s); err != nil {
			return err
		}
		rec.again(s.Index)
		rec.Broken = rec.Broken || s.Broken
	case KindCancel:
		c := Cancel{}
		if err := json.Unmarshal(e.Data, &c); err != nil {
			return err
		}
		c.At = se.Time
		if rec.Cancel != nil {
			c.Now, c.At = c.Now || rec.Cancel.Now, rec.Cancel.At
		}
		rec.Cancel = &c
	case KindOutcome:
		return set(e.Data, &rec.Outcome)
	case KindSubmitted, KindWaiting, KindFinal, KindClosed, KindWarning:
	}
	return nil
}

func (rec *Record) again(index int) {
	rec.Attempts++
	if index >= 0 {
		*rec.step(index) = StepRecord{}
		return
	}
	rec.Steps, rec.Opening = nil, nil
}

func (rec *Record) step(i int) *StepRecord {
	for len(rec.Steps) <= i {
		rec.Steps = append(rec.Steps, StepRecord{})
	}
	return &rec.Steps[i]
}

// is reports whether a step asks for this image, and for the same in its place.
func (im *Imaged) is(s *berth.Step) bool {
	return im.Ref == s.Image && im.Platform == s.Platform && slices.Equal(im.Fallbacks, s.Fallbacks)
}

// name is what the step calls the image that it has.
func (im *Imaged) name() string { return cmp.Or(im.Taken, im.Ref) }

// Image finds what the image of a step of the task was resolved to.
func (rec *Record) Image(s *berth.Step) (berth.Image, bool) {
	im, ok := rec.imaged(s)
	return im.Image, ok
}

func (rec *Record) imaged(s *berth.Step) (Imaged, bool) {
	if rec.Opening != nil {
		for _, im := range rec.Opening.Images {
			if im.is(s) {
				return im, true
			}
		}
	}
	return Imaged{Ref: s.Image}, false
}

// GPUs are the devices that the task had last.
func (rec *Record) GPUs() (gpus []berth.LentGPU) {
	if rec.Opening == nil {
		return nil
	}
	for _, g := range rec.Opening.Spec.Grants {
		gpus = append(gpus, berth.LentGPU{Vendor: g.Vendor, UUID: g.UUID, Index: g.Index, Memory: g.Memory})
	}
	return gpus
}

// exits are the steps that have ended, in order.
func (rec *Record) exits() []berth.StepResult {
	var out []berth.StepResult
	for i, s := range rec.Steps {
		if s.Exit != nil {
			out = append(out, berth.StepResult{Index: i, Exit: *s.Exit, Image: s.Spec.Image})
		}
	}
	return out
}

func set[T any](data json.RawMessage, p **T) error {
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		return err
	}
	*p = v
	return nil
}
