package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/berth-project/berth"
)

const (
	applicationID = 0x62727468 // "brth", in the file's header
	schemaVersion = 1
)

// Columns that every list shows come before the documents, which may spill to further pages.
const schema = `
CREATE TABLE tasks (
	n            INTEGER PRIMARY KEY AUTOINCREMENT, -- order of submission
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
	driver_boot  TEXT NOT NULL,
	result       TEXT,
	work         TEXT,
	doc          TEXT NOT NULL
) STRICT;
CREATE INDEX tasks_state ON tasks(state, n);
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
	seq   INTEGER PRIMARY KEY AUTOINCREMENT,
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

// header is what the first page of an SQLite file says.
type header struct{ version uint32 }

var errFull = syscall.ENOSPC

// readHeader tells a database of berth's from anything else, without SQLite and its cost.
func readHeader(path string) (header, error) {
	f, err := os.Open(path)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	var b [100]byte
	_, err = io.ReadFull(f, b[:])
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return header{}, fmt.Errorf("%w: not a database: it is too short; move it away", berth.ErrInvalid)
	case err != nil:
		return header{}, err
	case string(b[:16]) != "SQLite format 3\x00":
		return header{}, fmt.Errorf("%w: not a database; move it away", berth.ErrInvalid)
	case binary.BigEndian.Uint32(b[68:]) != applicationID:
		return header{}, fmt.Errorf("%w: a database, but not berth's; move it away", berth.ErrInvalid)
	}
	return header{version: binary.BigEndian.Uint32(b[60:])}, nil
}
