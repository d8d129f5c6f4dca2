package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/berth-project/berth"
)

// Record is a task as its events have made it.
type Record struct {
	ID       string      `json:"id"`
	Name     string      `json:"name,omitempty"`
	State    berth.State `json:"state"`
	Created  time.Time   `json:"created"`
	Updated  time.Time   `json:"updated"`
	UID      int         `json:"uid"`
	Detached bool        `json:"detached,omitempty"`
	// Open: something is left to do: the task is not final, or its sandbox is still there.
	Open    bool            `json:"open,omitempty"`
	Sandbox string          `json:"sandbox,omitempty"` // its ID; "" when nothing is left of it
	Driver  Driver          `json:"driver,omitzero"`   // who brings it forward, or did
	Work    json.RawMessage `json:"work,omitempty"`    // what a driver needs to go on; the runner's
	Task    berth.Task      `json:"task"`
	Result  *berth.Result   `json:"result,omitempty"` // nil until it has ended

	n int64
}

const pageSize = 200

// Token returns the page token that continues a List after this record.
func (r Record) Token() string { return strconv.FormatInt(r.n, 36) }

// Get finds a task by its whole ID. berth.ErrNotFound if there is none.
func (s *Store) Get(ctx context.Context, id string) (Record, error) {
	rs, err := s.records(ctx, "tasks", "WHERE id = ?", id)
	if err == nil && len(rs) == 0 {
		err = fmt.Errorf("%w: there is no such task", berth.ErrNotFound)
	}
	if err != nil {
		return Record{}, fmt.Errorf("task %s: %w", id, err)
	}
	return rs[0], nil
}

// Find finds a task as a user names it: by its ID, else by its name (the newest of several), else by the
// beginning of its ID, four characters at least: fewer may as well be a name that is no longer there, and to remove
// another task by it would be a harm. berth.ErrNotFound if there is none, berth.ErrConflict where several IDs begin so.
func (s *Store) Find(ctx context.Context, ref string) (Record, error) {
	r, err := s.Get(ctx, ref)
	if !errors.Is(err, berth.ErrNotFound) || ref == "" {
		return r, err
	}
	rs, err := s.records(ctx, "tasks", "WHERE name = ? AND name <> '' ORDER BY tasks.n DESC LIMIT 1", ref)
	if err == nil && len(rs) == 0 && len(ref) >= leastID {
		rs, err = s.records(ctx, "tasks", "WHERE id >= ? AND id < ? ORDER BY id LIMIT 3", ref, after(ref))
	}
	if err == nil && len(rs) == 0 {
		err = fmt.Errorf("%w: there is no such task", berth.ErrNotFound)
	}
	if err == nil && len(rs) > 1 {
		err = fmt.Errorf("%w: several ids begin so: %s, %s, …", berth.ErrConflict, rs[0].ID, rs[1].ID)
	}
	if err != nil {
		return Record{}, fmt.Errorf("task %q: %w", ref, err)
	}
	return rs[0], nil
}

// leastID is how many characters of an ID name a task.
const leastID = 4

// Named lists the IDs of the tasks of a name: those that have not ended before those that have, and of each the newest
// first; at most the first of limit.
func (s *Store) Named(ctx context.Context, name string, limit int) ([]string, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id FROM tasks WHERE name = ? AND name <> ''
		ORDER BY state IN ('QUEUED', 'INITIALIZING', 'RUNNING', 'CANCELING') DESC, n DESC LIMIT ?`, name, limit)
	if err != nil {
		return nil, fmt.Errorf("tasks of the name %q: %w", name, kinded(err))
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("tasks of the name %q: %w", name, kinded(err))
		}
		ids = append(ids, id)
	}
	return ids, kinded(rows.Err())
}

// after is the least string that is greater than all that begin with prefix.
func after(prefix string) string { return prefix + "\U0010ffff" }

// List yields tasks, the newest first. No lock is held between two of them: the body may call the store.
// berth.ErrInvalid for a token that is none.
func (s *Store) List(ctx context.Context, f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		q, err := s.query(ctx, &f)
		if err != nil {
			yield(Record{}, fmt.Errorf("list tasks: %w", err))
			return
		}
		last := f.Token
		for left := f.Limit; ; {
			size := pageSize
			if f.Limit > 0 {
				size = min(size, left)
			}
			where, args := q.where(), slices.Clone(q.args)
			if last != "" {
				n, err := strconv.ParseInt(last, 36, 64)
				if err != nil || n <= 0 {
					yield(Record{}, fmt.Errorf("list tasks: %w: page token %q", berth.ErrInvalid, last))
					return
				}
				where, args = where+" AND "+q.n+" < ?", append(args, n)
			}
			page, err := s.records(ctx, q.from, where+" ORDER BY "+q.n+" DESC LIMIT ?", append(args, size)...)
			if err != nil {
				yield(Record{}, fmt.Errorf("list tasks: %w", err))
				return
			}
			for _, r := range page {
				if !yield(r, nil) {
					return
				}
				last = r.Token()
			}
			left -= len(page)
			if len(page) < size || f.Limit > 0 && left <= 0 {
				return
			}
		}
	}
}

// records runs a query over tasks to its end.
func (s *Store) records(ctx context.Context, from, where string, args ...any) ([]Record, error) {
	st, err := s.stmt(ctx, `SELECT tasks.n, id, name, state, created, updated, uid, detached, open, sandbox, driver_pid,
		driver_start, driver_boot, result, work, task FROM `+from+` CROSS JOIN docs ON docs.n = tasks.n `+where)
	if err != nil {
		return nil, kinded(err)
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return nil, kinded(err)
	}
	defer rows.Close()
	var rs []Record
	for rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return nil, kinded(err)
		}
		rs = append(rs, r)
	}
	return rs, kinded(rows.Err())
}

func scan(rows *sql.Rows) (Record, error) {
	var r Record
	var created, updated int64
	var result, work, doc sql.RawBytes
	err := rows.Scan(&r.n, &r.ID, &r.Name, &r.State, &created, &updated, &r.UID, &r.Detached, &r.Open, &r.Sandbox,
		&r.Driver.PID, &r.Driver.Start, &r.Driver.Boot, &result, &work, &doc)
	if err != nil {
		return r, err
	}
	r.Created, r.Updated = time.Unix(0, created), time.Unix(0, updated)
	if work != nil {
		r.Work = slices.Clone(json.RawMessage(work))
	}
	if result != nil {
		if err := json.Unmarshal(result, &r.Result); err != nil {
			return r, fmt.Errorf("task %s: result: %w: %w", r.ID, berth.ErrInvalid, err)
		}
	}
	if err := json.Unmarshal(doc, &r.Task); err != nil {
		return r, fmt.Errorf("task %s: document: %w: %w", r.ID, berth.ErrInvalid, err)
	}
	return r, nil
}

// Delete removes a task and its events, and leaves one event that says so. berth.ErrConflict while it is
// open, berth.ErrNotFound if there is none.
func (s *Store) Delete(ctx context.Context, id string) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		var n int64
		var open bool
		if err := s.row(ctx, tx, "SELECT n, open FROM tasks WHERE id = ?", id).Scan(&n, &open); err != nil {
			return noRows(err)
		}
		if open {
			return fmt.Errorf("%w: it has not ended, or its sandbox is still there", berth.ErrConflict)
		}
		for _, q := range []string{"DELETE FROM labels WHERE n = ?", "DELETE FROM docs WHERE n = ?", "DELETE FROM tasks WHERE n = ?"} {
			if err := s.exec(ctx, tx, q, n); err != nil {
				return err
			}
		}
		// Insert before delete: the number of the last event is not given again.
		seq, err := s.insertEvent(ctx, tx, &Event{Task: id, Kind: Removed, Time: time.Now()})
		if err != nil {
			return err
		}
		return s.exec(ctx, tx, "DELETE FROM events WHERE task = ? AND seq < ?", id, seq)
	})
	if err != nil {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	return nil
}
