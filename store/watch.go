package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/berth-project/berth"
)

// Events yields the events after since, of one task or (task is "") of all, in order. No lock is held
// between two of them.
func (s *Store) Events(ctx context.Context, since int64, task string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			page, err := s.events(ctx, since, task)
			if err != nil {
				yield(Event{}, fmt.Errorf("list events: %w", err))
				return
			}
			for _, e := range page {
				since = e.Seq
				if !yield(e, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

// Last is the number of the newest event, from which on Watch tells only what comes; 0 if there is none.
func (s *Store) Last(ctx context.Context) (seq int64, err error) {
	var n sql.NullInt64
	if err := s.db.QueryRowContext(ctx, "SELECT max(seq) FROM events").Scan(&n); err != nil {
		return 0, fmt.Errorf("last event: %w", kinded(err))
	}
	return n.Int64, nil
}

func (s *Store) events(ctx context.Context, since int64, task string) ([]Event, error) {
	query, args := "SELECT seq, task, time, kind, state, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?", []any{since, pageSize}
	if task != "" {
		query, args = "SELECT seq, task, time, kind, state, data FROM events WHERE task = ? AND seq > ? ORDER BY seq LIMIT ?", []any{task, since, pageSize}
	}
	st, err := s.stmt(ctx, query)
	if err != nil {
		return nil, kinded(err)
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return nil, kinded(err)
	}
	defer rows.Close()
	var es []Event
	for rows.Next() {
		var e Event
		var at int64
		var data sql.RawBytes
		if err := rows.Scan(&e.Seq, &e.Task, &at, &e.Kind, &e.State, &data); err != nil {
			return nil, kinded(err)
		}
		e.Time = time.Unix(0, at)
		if data != nil {
			e.Data = slices.Clone(json.RawMessage(data))
		}
		es = append(es, e)
	}
	return es, kinded(rows.Err())
}

// watchEvery is how often Watch looks for what other processes append. A look at a quiet database takes
// some microseconds.
const watchEvery = 100 * time.Millisecond

// Watch is Events that goes on until ctx ends: it waits for events that this and other processes append.
// The last error is then context.Cause(ctx).
func (s *Store) Watch(ctx context.Context, since int64, task string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		version := int64(-1)
		for {
			s.mu.Lock()
			changed := s.changed
			s.mu.Unlock()
			v, err := s.dataVersion(ctx)
			if err == nil && v != version {
				version = v
				for e, err := range s.Events(ctx, since, task) {
					if err != nil && ctx.Err() != nil {
						break
					}
					if !yield(e, err) || err != nil {
						return
					}
					since = e.Seq
				}
			}
			if err != nil && ctx.Err() == nil {
				yield(Event{}, fmt.Errorf("watch events: %w", err))
				return
			}
			select {
			case <-ctx.Done():
				yield(Event{}, context.Cause(ctx))
				return
			case <-changed:
				version = -1
			case <-tick.C:
			}
		}
	}
}

// dataVersion changes when another process has written.
func (s *Store) dataVersion(ctx context.Context) (v int64, err error) {
	st, err := s.stmt(ctx, "PRAGMA data_version")
	if err != nil {
		return 0, kinded(err)
	}
	return v, kinded(st.QueryRowContext(ctx).Scan(&v))
}

// Settle waits until a task is final, and returns its record. berth.ErrNotFound if it is not there or is
// removed meanwhile; at the end of ctx its cause.
func (s *Store) Settle(ctx context.Context, id string) (Record, error) {
	r, err := s.Get(ctx, id)
	if err != nil || r.State.Final() {
		return r, err
	}
	// From the beginning: what happened since the look is told as well.
	for e, err := range s.Watch(ctx, 0, id) {
		if err != nil {
			return Record{}, err
		}
		if e.Kind == Removed {
			return Record{}, fmt.Errorf("task %s: %w: it was removed", id, berth.ErrNotFound)
		}
		if e.State.Final() {
			return s.Get(ctx, id)
		}
	}
	return Record{}, context.Cause(ctx)
}
