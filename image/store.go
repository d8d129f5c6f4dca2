// Package image keeps container images for engines without an image store of their own: it pulls them from
// registries, loads them from archives, verifies them, unpacks each layer once into a directory that overlay
// can mount, shares layers between images and collects what is no longer used.
//
// It is no builder and no registry: nothing is ever pushed, and the compressed layers are not kept.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/berth-project/berth"
)

const (
	storeVersion = 1
	emptyDir     = "empty" // the only layer of images that have none
)

// Options say how a store works. Only Dir must be set.
type Options struct {
	Dir       string            // where everything lies; made where it is not there
	Transport http.RoundTripper // nil is one that heeds the proxy variables
	Keychain  authn.Keychain    // nil is Keychain()
	Log       *slog.Logger      // nil is silent
	Now       func() time.Time  // nil is time.Now
	Parallel  int               // layers fetched and unpacked at once; 0 is 4
	Stall     time.Duration     // a transfer that brings no byte for so long is broken off and tried again; 0 is 30 s
	Retries   int               // further tries of what may succeed later; 0 is 5, -1 none
	Backoff   time.Duration     // before the first further try, doubled with each, at most 10 s; 0 is 250 ms
	// Rootless: the process is root in a user namespace only. Whiteouts are then marked for overlay's
	// userxattr, device nodes are left out, and owners that are not mapped become root.
	Rootless bool
}

// Store is a directory of images. It may be used by many goroutines, and the directory by many processes.
type Store struct {
	opts  Options
	dir   string
	log   *slog.Logger
	now   func() time.Time
	boot  string
	away  *away
	slots chan struct{} // layers that may be unpacked at once

	running sync.WaitGroup // flights
	mu      sync.Mutex
	flights map[string]*flight
	loaded  map[string]*loaded
}

var _ berth.Puller = (*Store)(nil)

// storeRecord says how the directory is laid out.
type storeRecord struct {
	Version  int  `json:"version"`
	Rootless bool `json:"rootless"`
}

// Open opens the store in opts.Dir and removes what crashed processes left there. ErrConflict if the
// directory was made by another version, or by root and is opened rootless, or the other way round.
func Open(opts Options) (*Store, error) {
	s := &Store{
		opts: opts, dir: opts.Dir, log: opts.Log, now: opts.Now,
		flights: map[string]*flight{}, loaded: map[string]*loaded{},
	}
	s.setDefaults()
	if err := s.makeDirs(); err != nil {
		return nil, fmt.Errorf("image store %s: %w: %w", s.dir, kindOf(err), err)
	}
	if err := s.checkVersion(); err != nil {
		return nil, fmt.Errorf("image store %s: %w", s.dir, err)
	}
	s.boot = bootID()
	if err := errors.Join(s.sweep(), s.sweepHolds()); err != nil {
		return nil, fmt.Errorf("image store %s: %w: %w", s.dir, kindOf(err), err)
	}
	return s, nil
}

// bootID names this boot of the machine; a constant where the kernel does not tell.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

func (s *Store) setDefaults() {
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.opts.Transport == nil {
		s.opts.Transport = newTransport()
	}
	if s.opts.Keychain == nil {
		s.opts.Keychain = Keychain()
	}
	if s.opts.Parallel <= 0 {
		s.opts.Parallel = 4
	}
	if s.opts.Stall <= 0 {
		s.opts.Stall = 30 * time.Second
	}
	if s.opts.Retries == 0 {
		s.opts.Retries = 5
	}
	if s.opts.Backoff <= 0 {
		s.opts.Backoff = 250 * time.Millisecond
	}
	s.away = newAway(s.opts.Transport)
	s.slots = make(chan struct{}, s.opts.Parallel)
}

// makeDirs makes the directories. None but the owner may enter: layers hold set-uid programs.
func (s *Store) makeDirs() error {
	abs, err := filepath.Abs(s.dir)
	if err != nil {
		return err
	}
	s.dir = abs
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	for _, d := range []string{"tmp", "refs", "images", "layers", "l", "locks", "holds", "holders"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// The store's lock is made here, so that images can be removed when the disk is full.
	lock, err := os.OpenFile(s.lockPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := lock.Close(); err != nil {
		return err
	}
	err = os.Mkdir(filepath.Join(s.dir, emptyDir), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return errors.Join(err, os.Chmod(filepath.Join(s.dir, emptyDir), 0o755))
}

func (s *Store) checkVersion() error {
	path := filepath.Join(s.dir, "store.json")
	want := storeRecord{storeVersion, s.opts.Rootless}
	var have storeRecord
	err := readRecord(path, &have)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.writeRecord(path, want); err != nil {
			return fmt.Errorf("%w: %w", kindOf(err), err)
		}
		return nil
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", kindOf(err), err)
	case have.Version != want.Version:
		return fmt.Errorf("%w: it was made by another version of berth (layout %d, this one has %d); choose another data directory", berth.ErrConflict, have.Version, want.Version)
	case have.Rootless != want.Rootless:
		return fmt.Errorf("%w: root and other users cannot share a store; choose another data directory", berth.ErrConflict)
	}
	return nil
}

// Close waits for the pulls that still run; end their contexts to make it quick. The store must not be asked
// for more meanwhile.
func (s *Store) Close() error {
	s.running.Wait()
	if t, ok := s.opts.Transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
	s.away.close()
	return nil
}

// lock takes the store's lock, under which records change. It is never held for long.
func (s *Store) lock(ctx context.Context) (*os.File, error) {
	return lockFile(ctx, s.lockPath())
}

func (s *Store) lockPath() string { return filepath.Join(s.dir, "locks", "store") }
