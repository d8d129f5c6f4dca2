package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
)

// On a disk that somebody fills faster than room can be made, what has become of a task is noted in a file whose
// blocks are there, of all tasks of the data directory, and recorded as soon as there is room: by whoever looks at
// tasks next. The file holds one event a line, in their order, and zeros behind; a recorded line is blanked.
const asideSize = 1 << 20

func (r *Runner) asideFile() string { return filepath.Join(r.cfg.DataDir, "tasks", ".aside") }

// aside is an event as it stands in the file, with what store.Event leaves out.
type aside struct {
	store.Event
	Result  *berth.Result `json:"result,omitempty"`
	Sandbox *string       `json:"sandbox,omitempty"`
}

// happened reports whether an event tells of what is so, recorded or not. All others are intents: without a record
// there is no effect.
func happened(k Kind) bool {
	switch k {
	case KindStarted, KindEnded, KindCancel, KindOutcome, KindFinal, KindClosed, KindWarning:
		return true
	case KindSubmitted, KindWaiting, KindAdmitted, KindOpening, KindStarting, KindAgain:
	}
	return false
}

// makeAside makes the file while there is room. That it cannot is no fault of a task.
func (r *Runner) makeAside() {
	if st, err := os.Lstat(r.asideFile()); err == nil && st.Size() == asideSize || r.free() < reserveFrom {
		return
	}
	f, err := r.openAside(os.O_CREATE)
	if err != nil {
		r.cfg.Logger.Warn("room set aside", "err", err)
		return
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() != asideSize {
		if _, err := f.WriteAt(make([]byte, asideSize), 0); err != nil {
			_ = os.Remove(r.asideFile())
		}
	}
}

// openAside opens the file for this process alone.
func (r *Runner) openAside(flag int) (*os.File, error) {
	f, err := os.OpenFile(r.asideFile(), os.O_RDWR|flag, 0o600)
	if err != nil {
		return nil, kind(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", r.asideFile(), err)
	}
	return f, nil
}

// setAside notes an event that could not be recorded.
func (r *Runner) setAside(e store.Event) error {
	f, err := r.openAside(0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	text, err := readAside(f)
	if err != nil {
		return err
	}
	line := append(encode(aside{e, e.Result, e.Sandbox}), '\n')
	if len(text)+len(line) > asideSize {
		return fmt.Errorf("%w: %s holds no more", berth.ErrExhausted, r.asideFile())
	}
	_, err = f.WriteAt(line, int64(len(text)))
	return kind(errors.Join(err, f.Sync()))
}

// asided are the events of a task that are set aside.
func (r *Runner) asided(task string) (events []store.Event, err error) {
	if !r.behind() {
		return nil, nil
	}
	f, err := r.openAside(0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	text, err := readAside(f)
	for line := range bytes.Lines(text) {
		if e, ok := parseAside(line); ok && e.Task == task {
			events = append(events, e)
		}
	}
	return events, err
}

// parseAside reads a line; one that is blank or was half written is none.
func parseAside(line []byte) (store.Event, bool) {
	var a aside
	if json.Unmarshal(line, &a) != nil {
		return store.Event{}, false
	}
	a.Event.Result, a.Event.Sandbox = a.Result, a.Sandbox
	return a.Event, true
}

func readAside(f *os.File) ([]byte, error) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, asideSize))
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	return text, kind(err)
}

// CatchUp records what could not be recorded when it happened, because the disk was full. ErrExhausted: it still is.
func (r *Runner) CatchUp(ctx context.Context) error {
	if !r.behind() {
		return nil
	}
	f, err := r.openAside(0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	text, err := readAside(f)
	if err != nil {
		return err
	}
	at := int64(0)
	for line := range bytes.Lines(text) {
		if err := r.recordAside(ctx, line); err != nil {
			return err
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{' '}, len(line)), at); err != nil {
			return kind(err)
		}
		at += int64(len(line))
	}
	_, err = f.WriteAt(make([]byte, len(text)), 0)
	return kind(err)
}

// behind reports whether something is noted that is not recorded.
func (r *Runner) behind() bool {
	f, err := os.Open(r.asideFile())
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 1)
	n, _ := f.ReadAt(b, 0)
	return n == 1 && b[0] != 0
}

func (r *Runner) recordAside(ctx context.Context, line []byte) error {
	e, ok := parseAside(line)
	if !ok {
		return nil
	}
	err := r.putNow(ctx, e)
	if errors.Is(err, berth.ErrConflict) || errors.Is(err, berth.ErrNotFound) {
		r.cfg.Logger.Warn("event that was set aside came too late", "task", e.Task, "kind", e.Kind, "err", err)
		return nil
	}
	return err
}
