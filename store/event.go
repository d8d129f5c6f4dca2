package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/berth-project/berth"
)

// Event is one arrow in the life of a task.
type Event struct {
	Seq   int64           `json:"seq"` // given by Append, in the order of all tasks
	Task  string          `json:"task"`
	Time  time.Time       `json:"time"`            // the zero time is now
	Kind  string          `json:"kind"`            // "submitted", "started", …: the appender's word
	State berth.State     `json:"state,omitempty"` // the state into which the task goes; "" stays
	Data  json.RawMessage `json:"data,omitempty"`

	// What else becomes of the task's record. These are not read back with the event.
	Result  *berth.Result   `json:"-"` // nil leaves it
	Sandbox *string         `json:"-"` // nil leaves it; "": nothing is left of the sandbox
	Work    json.RawMessage `json:"-"` // nil leaves it
	// By, where given, must be the task's driver: whoever lost its claim can change nothing any more.
	By *Driver `json:"-"`
}

// Kinds of events that the store itself appends.
const (
	Submitted = "submitted"
	Removed   = "removed"
)

// Submission is a new task.
type Submission struct {
	Task     berth.Task
	UID      int  // who submits
	Detached bool // it outlives the process that submits it
	Driver   Driver
	// UniqueName: no task of this user that has not ended may have the same name.
	UniqueName bool
	Data       json.RawMessage // of the event
	Time       time.Time       // the zero time is now
}

// NameError says that a name is that of a task which has not ended. It is a berth.ErrConflict.
type NameError struct {
	Name, ID string
	State    berth.State
}

func (e *NameError) Error() string {
	return fmt.Sprintf("the name %q is that of task %s, which is %s", e.Name, e.ID, e.State)
}

func (e *NameError) Unwrap() error { return berth.ErrConflict }

// nameFree answers a NameError where a name is taken.
func (s *Store) nameFree(ctx context.Context, tx *sql.Tx, sub *Submission) error {
	if !sub.UniqueName || sub.Task.Name == "" {
		return nil
	}
	e := &NameError{Name: sub.Task.Name}
	err := s.row(ctx, tx, `SELECT id, state FROM tasks WHERE name = ? AND name <> '' AND uid = ? AND state IN
		('QUEUED', 'INITIALIZING', 'RUNNING', 'CANCELING') LIMIT 1`, sub.Task.Name, sub.UID).Scan(&e.ID, &e.State)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	} else if err != nil {
		return err
	}
	return e
}

// Submit records a new task, Queued, with its first event. berth.ErrConflict if there is one of its ID, or a NameError.
func (s *Store) Submit(ctx context.Context, sub Submission) (seq int64, err error) {
	t := sub.Task
	if err := berth.CheckID(t.ID); err != nil {
		return 0, fmt.Errorf("submit: %w", err)
	}
	doc, err := json.Marshal(t)
	if err != nil {
		return 0, fmt.Errorf("submit %s: %w: %w", t.ID, berth.ErrInvalid, err)
	}
	e := Event{Task: t.ID, Time: sub.Time, Kind: Submitted, State: berth.Queued, Data: sub.Data}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		if err := s.nameFree(ctx, tx, &sub); err != nil {
			return err
		}
		var n int64
		err := s.row(ctx, tx, `INSERT INTO tasks (id, name, state, created, updated, uid, detached, open, sandbox,
			driver_pid, driver_start, driver_boot) VALUES (?, ?, ?, ?, ?, ?, ?, 1, '', ?, ?, ?)
			ON CONFLICT (id) DO NOTHING RETURNING n`,
			t.ID, t.Name, string(e.State), e.Time.UnixNano(), e.Time.UnixNano(), sub.UID, sub.Detached,
			sub.Driver.PID, sub.Driver.Start, sub.Driver.Boot).Scan(&n)
		if err == sql.ErrNoRows { //nolint:errorlint // database/sql returns it bare
			return fmt.Errorf("%w: there is a task of this id", berth.ErrConflict)
		}
		if err != nil {
			return err
		}
		if err := s.exec(ctx, tx, "INSERT INTO docs (n, task) VALUES (?, ?)", n, string(doc)); err != nil {
			return err
		}
		for k, v := range t.Labels {
			if err := s.exec(ctx, tx, "INSERT INTO labels (key, value, n) VALUES (?, ?, ?)", k, v, n); err != nil {
				return err
			}
		}
		seq, err = s.insertEvent(ctx, tx, &e)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("submit %s: %w", t.ID, err)
	}
	return seq, nil
}

// Append records an event and what becomes of its task, both or neither.
//
// Errors: berth.ErrNotFound; berth.ErrConflict where the task cannot go into e.State, or is not driven by
// e.By; berth.ErrExhausted where the disk is full.
func (s *Store) Append(ctx context.Context, e Event) (seq int64, err error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		if err := s.apply(ctx, tx, &e); err != nil {
			return err
		}
		seq, err = s.insertEvent(ctx, tx, &e)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("append %s to task %s: %w", e.Kind, e.Task, err)
	}
	return seq, nil
}

// apply changes the record of e's task.
func (s *Store) apply(ctx context.Context, tx *sql.Tx, e *Event) error {
	var n int64
	var state berth.State
	var sandbox string
	var has Driver
	err := s.row(ctx, tx, "SELECT n, state, sandbox, driver_pid, driver_start, driver_boot FROM tasks WHERE id = ?", e.Task).
		Scan(&n, &state, &sandbox, &has.PID, &has.Start, &has.Boot)
	if err != nil {
		return noRows(err)
	}
	if e.By != nil && *e.By != has {
		return fmt.Errorf("%w: process %d drives it, and not process %d", berth.ErrConflict, has.PID, e.By.PID)
	}
	if e.State != "" {
		if !state.CanBecome(e.State) {
			return fmt.Errorf("%w: it is %s and cannot become %s", berth.ErrConflict, state, e.State)
		}
		state = e.State
	}
	if e.Sandbox != nil {
		sandbox = *e.Sandbox
	}
	open := !state.Final() || sandbox != ""
	err = s.exec(ctx, tx, "UPDATE tasks SET state = ?, updated = ?, open = ?, sandbox = ? WHERE n = ?",
		string(state), e.Time.UnixNano(), open, sandbox, n)
	if err != nil || e.Result == nil && e.Work == nil {
		return err
	}
	var result, work any // nil leaves what is there
	if e.Result != nil {
		b, err := json.Marshal(e.Result)
		if err != nil {
			return fmt.Errorf("%w: %w", berth.ErrInvalid, err)
		}
		result = string(b)
	}
	if e.Work != nil {
		work = string(e.Work)
	}
	return s.exec(ctx, tx, "UPDATE docs SET result = coalesce(?, result), work = coalesce(?, work) WHERE n = ?", result, work, n)
}

func (s *Store) insertEvent(ctx context.Context, tx *sql.Tx, e *Event) (seq int64, err error) {
	var data any
	if e.Data != nil {
		data = string(e.Data)
	}
	err = s.row(ctx, tx, "INSERT INTO events (task, time, kind, state, data) VALUES (?, ?, ?, ?, ?) RETURNING seq",
		e.Task, e.Time.UnixNano(), e.Kind, string(e.State), data).Scan(&seq)
	return seq, err
}

// row and exec run prepared statements in a transaction.
func (s *Store) row(ctx context.Context, tx *sql.Tx, query string, args ...any) *sql.Row {
	return tx.QueryRowContext(ctx, query, args...)
}

func (s *Store) exec(ctx context.Context, tx *sql.Tx, query string, args ...any) error {
	_, err := tx.ExecContext(ctx, query, args...)
	return err
}

func noRows(err error) error {
	if err == sql.ErrNoRows { //nolint:errorlint // database/sql returns it bare
		return fmt.Errorf("%w: there is no such task", berth.ErrNotFound)
	}
	return err
}
