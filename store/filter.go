package store

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// Filter chooses among tasks. What it leaves zero chooses all.
type Filter struct {
	States     []berth.State
	Labels     map[string]string // an empty value matches any
	NamePrefix string
	Since      time.Time // created then or later
	UID        *int      // submitted by
	Open       bool      // only those that are open
	Limit      int       // 0 is no limit
	Token      string    // Record.Token of the last of the page before
}

// query is a Filter in SQL.
type query struct {
	from  string // what is walked through
	n     string // the column in whose order it is
	conds []string
	args  []any
}

func (q *query) add(cond string, args ...any) {
	q.conds = append(q.conds, cond)
	q.args = append(q.args, args...)
}

func (q *query) where() string { return "WHERE " + strings.Join(q.conds, " AND ") }

// query chooses how to find what f asks for, each page from where the last ended: SQLite would rather sort
// all that matches, and again for each page.
func (s *Store) query(ctx context.Context, f *Filter) (query, error) {
	q := query{from: "tasks", n: "tasks.n", conds: []string{"1"}}
	q.labels(f.Labels)
	q.states(f.States)
	if f.NamePrefix != "" {
		if err := s.queryName(ctx, &q, f.NamePrefix); err != nil {
			return q, err
		}
	}
	if !f.Since.IsZero() {
		if err := s.querySince(ctx, &q, f.Since.UnixNano()); err != nil {
			return q, err
		}
	}
	if f.UID != nil {
		q.add("uid = ?", *f.UID)
	}
	if f.Open {
		q.add("open = 1")
	}
	return q, nil
}

// labels walks through the tasks that have one of the labels, in the order of its index.
func (q *query) labels(labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		switch v := labels[k]; {
		case v == "":
			q.add("EXISTS (SELECT 1 FROM labels l WHERE l.n = tasks.n AND l.key = ?)", k)
		case q.from == "tasks":
			q.from, q.n = "labels first CROSS JOIN tasks ON tasks.n = first.n", "first.n"
			q.add("first.key = ? AND first.value = ?", k, v)
		default:
			q.add("EXISTS (SELECT 1 FROM labels l WHERE l.n = tasks.n AND l.key = ? AND l.value = ?)", k, v)
		}
	}
}

func (q *query) states(states []berth.State) {
	if len(states) == 0 {
		return
	}
	failed, running := true, true
	var args []any
	for _, st := range states {
		args = append(args, string(st))
		failed = failed && st.Final() && st != berth.Complete
		running = running && !st.Final()
	}
	q.add("state IN ("+strings.TrimSuffix(strings.Repeat("?, ", len(states)), ", ")+")", args...)
	if failed {
		q.add(isFailed)
	}
	if running {
		q.add("open = 1")
	}
}

// fewNames is how many matches are worth sorting rather than finding them on a walk through all tasks.
const fewNames = 1000

func (s *Store) queryName(ctx context.Context, q *query, prefix string) error {
	var matches int
	err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM tasks WHERE name <> '' AND name >= ? AND name < ? LIMIT ?)",
		prefix, after(prefix), fewNames).Scan(&matches)
	if err != nil {
		return kinded(err)
	}
	if matches < fewNames {
		q.add("tasks.n IN (SELECT n FROM tasks WHERE name <> '' AND name >= ? AND name < ?)", prefix, after(prefix))
	} else {
		q.add("+name >= ? AND +name < ?", prefix, after(prefix)) // the + keeps SQLite from the index
	}
	return nil
}

func (s *Store) querySince(ctx context.Context, q *query, since int64) error {
	// The clock may have been set back: the first of them need not be the first in order of submission.
	// The + keeps SQLite from walking through all tasks in the order of n.
	var first sql.NullInt64
	if err := s.db.QueryRowContext(ctx, "SELECT min(+n) FROM tasks WHERE created >= ?", since).Scan(&first); err != nil {
		return kinded(err)
	}
	if !first.Valid {
		q.add("0")
		return nil
	}
	q.add(q.n+" >= ? AND created >= ?", first.Int64, since)
	return nil
}
