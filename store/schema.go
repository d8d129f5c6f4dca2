package store

import (
	"context"
	"database/sql"
	"fmt"
	"syscall"

	"github.com/berth-project/berth"
)

const (
	applicationID = 0x62727468 // "brth", in the file's header
	schemaVersion = 1
)

// isFailed is spelled in queries as in the index, so that SQLite finds that the one implies the other.
const isFailed = "state IN ('EXECUTOR_ERROR', 'SYSTEM_ERROR', 'CANCELED')"

// The documents are a table of their own, so that a walk over all tasks reads little.
const schema = `
CREATE TABLE tasks (
	n            INTEGER PRIMARY KEY, -- order of submission
	id           TEXT NOT NULL UNIQUE,
	name         TEXT NOT NULL,
	state        TEXT NOT NULL,
	created      INTEGER NOT NULL,                  -- nanoseconds since 1970
	updated      INTEGER NOT NULL,
	uid          INTEGER NOT NULL,
	detached     INTEGER NOT NULL,
	open         INTEGER NOT NULL,                  -- 1 while there is something left to do
	sandbox      TEXT NOT NULL,                     -- '' when nothing is left of it
	driver_pid   INTEGER NOT NULL,                  -- 0 is none
	driver_start INTEGER NOT NULL,
	driver_boot  TEXT NOT NULL
) STRICT;
CREATE TABLE docs (
	n      INTEGER PRIMARY KEY,                     -- of tasks
	task   TEXT NOT NULL,                           -- berth.Task, in JSON
	result TEXT,                                    -- berth.Result, in JSON
	work   TEXT                                     -- what a driver needs to go on, in JSON
) STRICT;
-- Most tasks end COMPLETE, and a scan finds those at once; an index of them all would be written to at each
-- change of state.
CREATE INDEX tasks_failed ON tasks(state, n) WHERE ` + isFailed + `;
CREATE INDEX tasks_name ON tasks(name, n) WHERE name <> '';
CREATE INDEX tasks_created ON tasks(created, n);
CREATE INDEX tasks_open ON tasks(n) WHERE open = 1;
CREATE TABLE labels (
	key   TEXT NOT NULL,
	value TEXT NOT NULL,
	n     INTEGER NOT NULL,
	PRIMARY KEY (key, value, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_n ON labels(n, key);
CREATE TABLE events (
	seq   INTEGER PRIMARY KEY,
	task  TEXT NOT NULL,
	time  INTEGER NOT NULL,                         -- nanoseconds since 1970
	kind  TEXT NOT NULL,
	state TEXT NOT NULL,                            -- '' is no change
	data  TEXT
) STRICT;
CREATE INDEX events_task ON events(task, seq);
`

// migrations bring a database from version i+1 to i+2.
var migrations = []string{}

// migrate brings the database to schemaVersion. Several processes may try at once.
func (s *Store) migrate(ctx context.Context) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		var version int
		if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
			return err
		}
		if version > schemaVersion || version < 1 {
			return fmt.Errorf("%w: it is of version %d, and this berth knows 1 to %d; use the newer berth that made it", berth.ErrUnsupported, version, schemaVersion)
		}
		for v := version; v < schemaVersion; v++ {
			if _, err := tx.ExecContext(ctx, fmt.Sprintf("%s; PRAGMA user_version = %d", migrations[v-1], v+1)); err != nil {
				return fmt.Errorf("migrate to version %d: %w", v+1, err)
			}
		}
		return nil
	})
}

var errFull = syscall.ENOSPC

// check tells a database of berth's from anything else, and migrates an older one. It asks SQLite and never
// opens the file itself: closing it would drop the locks that another store of this process has on it.
func (s *Store) check(ctx context.Context) error {
	var id, version int
	if err := s.db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return err
	}
	if id != applicationID {
		return fmt.Errorf("%w: not a database of berth's; move it away", berth.ErrInvalid)
	}
	if err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version == schemaVersion {
		return nil
	}
	return s.migrate(ctx)
}
