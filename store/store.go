// Package store is the embedded database of one data directory: its tasks, and the events that made them
// what they are. Several processes may have it open at once.
//
// It knows no engine and drives nothing: package runner decides what to append, and when.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"

	"github.com/berth-project/berth"
)

// Store is an open database. All methods may be called concurrently.
//
// What Append has returned is there for every other process at once, and survives the death of any process.
// A power cut or a crash of the kernel may lose the last appends, never the order or the integrity of what is
// left (SQLite's synchronous=NORMAL in WAL mode). That is safe because such a crash also ends every
// container: a task that is found earlier than it was is still found not to have ended, with no driver of
// this boot, and is settled as Lost rather than run twice.
type Store struct {
	path  string
	db    *sql.DB
	alive func(Driver) bool

	mu      sync.Mutex
	stmts   map[string]*sql.Stmt
	changed chan struct{} // closed and replaced at each append of this process
}

// Options change how a store behaves. The zero value is the default.
type Options struct {
	// BusyTimeout is how long a write waits for other processes' writes. Default 10 s.
	BusyTimeout time.Duration
	// Alive reports whether a driver still runs. Default: it is of this boot, and a process of that id and
	// start time is there.
	Alive func(Driver) bool
}

// Open opens the database at path, making it and its directory where they are not there.
//
// Errors: berth.ErrInvalid for a file that is no database of berth's or is damaged; berth.ErrUnsupported for
// one made by a newer berth; berth.ErrDenied; berth.ErrExhausted where the disk is full.
func Open(ctx context.Context, path string, opts Options) (*Store, error) {
	if opts.BusyTimeout == 0 {
		opts.BusyTimeout = 10 * time.Second
	}
	if opts.Alive == nil {
		opts.Alive = Driver.alive
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(ctx, path); err != nil {
			return nil, fmt.Errorf("create %s: %w", path, kinded(err))
		}
	}
	// In WAL mode, synchronous=NORMAL makes an append one write without a flush.
	dsn := fmt.Sprintf("%s?mode=rw&_pragma=busy_timeout(%d)&_pragma=synchronous(NORMAL)&_pragma=cache_size(-1024)&_pragma=wal_autocheckpoint(400)&_txlock=immediate",
		fileURI(path), opts.BusyTimeout.Milliseconds())
	s := &Store{path: path, alive: opts.Alive, stmts: map[string]*sql.Stmt{}, changed: make(chan struct{})}
	if s.db, err = openDB(dsn); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := s.check(ctx); err != nil {
		_ = s.db.Close()
		return nil, fmt.Errorf("open %s: %w", path, kinded(err))
	}
	return s, nil
}

// openDB opens a database with a single connection: SQLite has one writer anyway, and each connection has a
// cache of its own.
func openDB(dsn string) (*sql.DB, error) {
	c, err := sqlite.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1)
	return db, nil
}

// fileURI is path as SQLite's "file:" names want it: with ?, # and % escaped.
func fileURI(path string) string {
	return "file://" + (&url.URL{Path: path}).EscapedPath()
}

// Close closes the database. A process that ends need not call it: nothing is buffered. The last to close
// folds the log into the database, which takes a flush of the disk.
func (s *Store) Close() error {
	s.mu.Lock()
	for _, st := range s.stmts {
		_ = st.Close()
	}
	s.stmts = map[string]*sql.Stmt{}
	s.mu.Unlock()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close %s: %w", s.path, kinded(err))
	}
	return nil
}

// write runs do in one transaction, which waits for those of other processes.
func (s *Store) write(ctx context.Context, do func(tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return kinded(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := do(tx); err != nil {
		return kinded(err)
	}
	if err := tx.Commit(); err != nil {
		return kinded(err)
	}
	s.mu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	return nil
}

// stmt prepares query once.
func (s *Store) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, ok := s.stmts[query]; ok {
		return st, nil
	}
	st, err := s.db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.stmts[query] = st
	return st, nil
}

const (
	sqliteBusy, sqliteLocked       = 5, 6
	sqliteReadonly, sqliteIO       = 8, 10
	sqliteCorrupt, sqliteFull      = 11, 13
	sqliteCantOpen, sqlitePerm     = 14, 3
	sqliteNotADB, sqliteAuth       = 26, 23
	sqliteIOShmSize, sqliteIOWrite = sqliteIO | 19<<8, sqliteIO | 3<<8
	sqliteIOInPage                 = sqliteIO | 34<<8 // of the index that processes share by mmap: it has no blocks
)

// kinded adds to an error of SQLite or of the file system the kind that it is of.
func kinded(err error) error {
	var e *sqlite.Error
	switch {
	case err == nil, hasKind(err):
		return err
	case errors.Is(err, errFull):
		return fmt.Errorf("%w: the disk is full: %w", berth.ErrExhausted, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", berth.ErrDenied, err)
	case !errors.As(err, &e):
		return err
	}
	switch code := e.Code(); {
	case code&0xff == sqliteFull, code == sqliteIOShmSize, code == sqliteIOWrite, code == sqliteIOInPage:
		return fmt.Errorf("%w: the disk is full: %w", berth.ErrExhausted, err)
	case code&0xff == sqliteBusy, code&0xff == sqliteLocked:
		return fmt.Errorf("%w: another process is writing to the database for too long: %w", berth.ErrUnavailable, err)
	case code&0xff == sqliteCorrupt, code&0xff == sqliteNotADB:
		return fmt.Errorf("%w: the database is damaged; move it away to begin anew, or restore it: %w", berth.ErrInvalid, err)
	case code&0xff == sqliteReadonly, code&0xff == sqliteCantOpen, code&0xff == sqlitePerm, code&0xff == sqliteAuth:
		return fmt.Errorf("%w: %w", berth.ErrDenied, err)
	case code&0xff == sqliteIO:
		return fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
	}
	return err
}

func hasKind(err error) bool {
	for _, k := range []error{
		berth.ErrInvalid, berth.ErrNotFound, berth.ErrConflict, berth.ErrDenied, berth.ErrExhausted,
		berth.ErrUnavailable, berth.ErrUnsupported,
	} {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

// create makes an empty database beside path and links it into place, so that nobody ever opens a part of
// one; of several processes that do so at once, one wins.
func create(ctx context.Context, path string) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer func() {
		for _, tail := range []string{"", "-wal", "-shm", "-journal"} {
			_ = os.Remove(tmp + tail)
		}
	}()
	if err := f.Close(); err != nil {
		return err
	}
	db, err := openDB(fileURI(tmp) + "?_pragma=synchronous(OFF)")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, strings.Join([]string{
		"BEGIN", schema, fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, schemaVersion),
		"COMMIT", "PRAGMA journal_mode = WAL",
	}, ";\n"))
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
