package monitor

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/berth-project/berth/scratch"
	"golang.org/x/sys/unix"
)

// spareDir holds directories that wait for their sandbox, below the data directory's runDir.
const spareDir = "spare"

// maxSpares is how many wait.
const maxSpares = 2

// maxPlaces is how many places of the disk they are made at, in turn.
const maxPlaces = 32

// What a spare directory has for the first container of its sandbox.
const (
	spareUpper = "upper"
	spareWork  = "work"
)

// spares are directories, made beside the way of a start for the next sandbox: ext4 looks at each of its groups of
// blocks to place one apart from the others (see scratch.Spread), which is one of the longest steps of a short container.
// So it does that for a few directories, the places, and the others are made in these, which is quick: each beside its place.
type spares struct {
	dir    string
	areas  string // the directory that they are moved to
	places []string
	next   int // of the places
	ready  chan string
	taken  chan struct{}
	stop   chan struct{}
	done   sync.WaitGroup
}

// newSpares removes those of an earlier monitor. None is made before the first one is asked for.
func newSpares(dir, areas string) (*spares, error) {
	if err := scratch.Remove(dir); err != nil {
		return nil, err
	}
	s := &spares{dir: dir, areas: areas, ready: make(chan string, maxSpares), taken: make(chan struct{}, 1), stop: make(chan struct{})}
	s.done.Go(s.run)
	return s, nil
}

// get is a directory to be moved away, or "".
func (s *spares) get() (dir string) {
	if s == nil {
		return ""
	}
	select {
	case dir = <-s.ready:
	default:
	}
	select {
	case s.taken <- struct{}{}:
	default:
	}
	return dir
}

// run makes directories whenever one was asked for. A failure, as on a full disk, is for those to meet who make one where
// they need it.
func (s *spares) run() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.taken:
		}
		for len(s.ready) < cap(s.ready) {
			dir, ok := s.make()
			if !ok {
				break
			}
			s.ready <- dir // nobody else sends
		}
	}
}

// place is the next of the directories that spares are made in; "" where none can be made.
func (s *spares) place() string {
	if len(s.places) == maxPlaces {
		s.next = (s.next + 1) % maxPlaces
		return s.places[s.next]
	}
	switch err := os.Mkdir(s.dir, 0o700); {
	case err == nil:
		scratch.Spread(s.dir)
	case !errors.Is(err, fs.ErrExist):
		return ""
	}
	place := filepath.Join(s.dir, rand.Text()) // where it comes to lie depends on its name
	if os.Mkdir(place, 0o700) != nil {
		return ""
	}
	s.places = append(s.places, place)
	return place
}

func (s *spares) make() (dir string, ok bool) {
	place := s.place()
	if place == "" {
		return "", false
	}
	var here, there unix.Stat_t
	if unix.Lstat(place, &here) != nil || unix.Lstat(s.areas, &there) != nil || here.Dev != there.Dev {
		for _, p := range s.places {
			_ = os.Remove(p) // but where a directory waits
		}
		s.places, s.next = nil, 0 // were they removed, there are others to come
		return "", false
	}
	dir, first := filepath.Join(place, rand.Text()), filepath.Join(place, "first")
	err := os.Mkdir(first, 0o700)
	if err == nil { // as it is moved into its place: some file systems cannot
		err = unix.Renameat2(unix.AT_FDCWD, first, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	}
	for _, name := range []string{spareUpper, spareWork} {
		if err == nil {
			err = os.Mkdir(filepath.Join(dir, name), 0o755)
		}
	}
	if err != nil {
		_, _ = scratch.Remove(first), scratch.Remove(dir)
		return "", false
	}
	return dir, true
}

func (s *spares) close() error {
	close(s.stop)
	s.done.Wait()
	return scratch.Remove(s.dir)
}
