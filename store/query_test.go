package store

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

func ids(t *testing.T, s *Store, f Filter) string {
	t.Helper()
	var ids []string
	for r, err := range s.List(bg, f) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID)
	}
	return strings.Join(ids, " ")
}

func TestList(t *testing.T) {
	s := openNew(t)
	at := time.Unix(1700000000, 0)
	for i, c := range []struct {
		id, name string
		labels   map[string]string
		state    berth.State
		uid      int
	}{
		{"a1", "align-1", map[string]string{"project": "x", "who": "me"}, berth.Complete, 1},
		{"a2", "align-2", map[string]string{"project": "y"}, berth.SystemError, 1},
		{"b1", "sort_1", map[string]string{"project": "x"}, berth.Running, 2},
		{"b2", "", nil, berth.Queued, 1},
		{"b3", "align-1", nil, berth.Canceled, 2},
	} {
		if _, err := s.Submit(bg, Submission{Task: berth.Task{ID: c.id, Name: c.name, Labels: c.labels}, UID: c.uid, Time: at.Add(time.Duration(i) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		for _, st := range []berth.State{berth.Initializing, berth.Running, c.state} {
			if c.state != berth.Queued && (st != berth.Running || c.state != berth.Initializing) {
				if r, _ := s.Get(bg, c.id); r.State == st {
					continue
				}
				if _, err := s.Append(bg, Event{Task: c.id, Kind: "x", State: st}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	third, err := s.Get(bg, "b1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		f    Filter
		want string
	}{
		{"all", Filter{}, "b3 b2 b1 a2 a1"},
		{"a state", Filter{States: []berth.State{berth.Complete}}, "a1"},
		{"failed states", Filter{States: []berth.State{berth.Canceled, berth.SystemError}}, "b3 a2"},
		{"running states", Filter{States: []berth.State{berth.Queued, berth.Running}}, "b2 b1"},
		{"states of both", Filter{States: []berth.State{berth.Queued, berth.Canceled}}, "b3 b2"},
		{"open", Filter{Open: true}, "b2 b1"},
		{"a label", Filter{Labels: map[string]string{"project": "x"}}, "b1 a1"},
		{"any value", Filter{Labels: map[string]string{"project": ""}}, "b1 a2 a1"},
		{"two labels", Filter{Labels: map[string]string{"project": "x", "who": "me"}}, "a1"},
		{"a label that nobody has", Filter{Labels: map[string]string{"project": "z"}}, ""},
		{"names", Filter{NamePrefix: "align"}, "b3 a2 a1"},
		{"a name with a wildcard", Filter{NamePrefix: "sort%"}, ""},
		{"since", Filter{Since: at.Add(2 * time.Hour)}, "b3 b2 b1"},
		{"a user", Filter{UID: new(2)}, "b3 b1"},
		{"a limit", Filter{Limit: 2}, "b3 b2"},
		{"the page after", Filter{Limit: 2, Token: third.Token()}, "a2 a1"},
		{"everything at once", Filter{
			States: []berth.State{berth.Complete}, Labels: map[string]string{"who": "", "project": "x"}, NamePrefix: "a",
			Since: at, UID: new(1), Limit: 5, Token: third.Token(),
		}, "a1"},
	} {
		if got := ids(t, s, c.f); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for _, token := range []string{"!", "-1", "0", "zzzzzzzzzzzzzzzzzzzzzzzz"} {
		for _, err := range s.List(bg, Filter{Token: token}) {
			isKind(t, err, berth.ErrInvalid)
		}
	}
}

func TestFind(t *testing.T) {
	s := openNew(t)
	for _, task := range []berth.Task{{ID: "abcd1", Name: "x"}, {ID: "abce2", Name: "x"}, {ID: "abcd3"}, {ID: "x9"}, {ID: "q", Name: "abcd1x"}} {
		submit(t, s, task)
	}
	for ref, want := range map[string]string{"abcd1": "abcd1", "abce": "abce2", "x": "abce2", "x9": "x9", "abcd1x": "q"} {
		if r, err := s.Find(bg, ref); err != nil || r.ID != want {
			t.Errorf("%q is %q (%v), want %q", ref, r.ID, err, want)
		}
	}
	_, err := s.Find(bg, "abcd")
	isKind(t, err, berth.ErrConflict)
	for _, ref := range []string{"", "nothing", "%%%%", "ABCE", "abc", "q9", "a"} {
		_, err := s.Find(bg, ref)
		isKind(t, err, berth.ErrNotFound)
	}
}

// The body of a list may change what is listed.
func TestListWhileWriting(t *testing.T) {
	s := openNew(t)
	for i := range 2*pageSize + 1 {
		submit(t, s, berth.Task{ID: fmt.Sprint("t", i)})
	}
	n := 0
	for r, err := range s.List(bg, Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(bg, Event{Task: r.ID, Kind: "cancel", State: berth.Canceled}); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(bg, r.ID); err != nil {
			t.Fatal(err)
		}
		n++
	}
	events := 0
	for e := range s.Events(bg, 0, "") {
		if e.Kind != Removed {
			t.Errorf("left: %+v", e)
		}
		events++
	}
	if n != 2*pageSize+1 || events != n || ids(t, s, Filter{}) != "" {
		t.Errorf("%d listed, %d events left", n, events)
	}
	if last, err := s.Last(bg); err != nil || last != int64(3*n) {
		t.Errorf("last event is %d (%v), want %d", last, err, 3*n)
	}
	// A sequence number is never used twice, whatever is removed.
	if seq, err := s.Submit(bg, Submission{Task: berth.Task{ID: "new"}}); err != nil || seq != int64(3*n+1) {
		t.Errorf("next event is %d (%v), want %d", seq, err, 3*n+1)
	}
}

// Each way to ask must go by an index: a database has a million tasks some day.
func TestPlans(t *testing.T) {
	s := openNew(t)
	const rows = 20_000
	if _, err := s.db.Exec(fmt.Sprintf(`
		PRAGMA cache_size = -65536;
		BEGIN;
		WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < %d)
		INSERT INTO tasks SELECT n, 'id' || n, 'name' || n,
			CASE WHEN n %% 4000 = 0 THEN 'SYSTEM_ERROR' WHEN n %% 6000 = 1 THEN 'QUEUED' ELSE 'COMPLETE' END,
			n * 1000000000, n, 0, 0, n %% 6000 = 1, '', 0, 0, '' FROM i;
		INSERT INTO docs SELECT n, '{"id":"x","steps":null}', NULL, NULL FROM tasks;
		INSERT INTO labels SELECT 'project', 'p' || (n %% 2000), n FROM tasks;
		INSERT INTO labels SELECT 'all', 'yes', n FROM tasks;
		INSERT INTO events SELECT n, id, n, 'submitted', 'QUEUED', NULL FROM tasks;
		COMMIT;
		PRAGMA cache_size = -1024`, rows)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		f    Filter
		want int
		plan string
	}{
		{"the newest", Filter{Limit: 3}, 3, "SCAN tasks"},
		{"most", Filter{States: []berth.State{berth.Complete}, Limit: 3}, 3, "SCAN tasks"},
		{"few", Filter{States: []berth.State{berth.SystemError}}, 5, "SEARCH tasks USING INDEX tasks_failed (state=?)"},
		{"open", Filter{States: []berth.State{berth.Queued}}, 4, "SCAN tasks USING INDEX tasks_open"},
		{"a label", Filter{Labels: map[string]string{"project": "p7"}}, 10, "SEARCH first USING PRIMARY KEY (key=? AND value=?)"},
		{"a label that all have", Filter{Labels: map[string]string{"all": "yes"}, Limit: 5}, 5, "SEARCH first USING PRIMARY KEY (key=? AND value=?)"},
		{"few names", Filter{NamePrefix: "name1999"}, 11, "SEARCH tasks USING COVERING INDEX tasks_name (name>? AND name<?)"},
		{"many names", Filter{NamePrefix: "name", Limit: 4}, 4, "SCAN tasks"},
		{"since", Filter{Since: time.Unix(19_990, 0)}, 11, "SEARCH tasks USING INTEGER PRIMARY KEY (rowid>?)"},
	} {
		q, err := s.query(bg, &c.f)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := s.db.Query("EXPLAIN QUERY PLAN SELECT id, task FROM "+q.from+" CROSS JOIN docs ON docs.n = tasks.n "+q.where()+" ORDER BY "+q.n+" DESC", q.args...)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(plan, c.plan) || slices.Contains(plan, "USE TEMP B-TREE FOR ORDER BY") {
			t.Errorf("%s: plan is %q, and should have %q", c.name, plan, c.plan)
		}
		at := time.Now()
		n := 0
		for _, err := range s.List(bg, c.f) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		t.Logf("%s: %d tasks in %v", c.name, n, time.Since(at))
		if n != c.want {
			t.Errorf("%s: %d tasks, want %d", c.name, n, c.want)
		}
	}
	at := time.Now()
	var stale []string
	for r, err := range s.Stale(bg) {
		if err != nil {
			t.Fatal(err)
		}
		stale = append(stale, r.ID)
	}
	if want := []string{"id1", "id6001", "id12001", "id18001"}; !reflect.DeepEqual(stale, want) {
		t.Errorf("stale are %q, want %q", stale, want)
	}
	if _, err := s.Find(bg, "id4242"); err != nil {
		t.Error(err)
	}
	for e, err := range s.Events(bg, 0, "id777") {
		if err != nil || e.Seq != 777 {
			t.Errorf("%+v, %v", e, err)
		}
	}
	var plan [4]string
	if err := s.db.QueryRow("EXPLAIN QUERY PLAN SELECT min(+n) FROM tasks WHERE created >= 1").Scan(&plan[0], &plan[1], &plan[2], &plan[3]); err != nil ||
		plan[3] != "SEARCH tasks USING COVERING INDEX tasks_created (created>?)" {
		t.Errorf("plan of since: %q, %v", plan, err)
	}
	t.Logf("stale, find and events in %v", time.Since(at))
}
