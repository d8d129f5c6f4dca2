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

// What a spare directory has for the first container of its sandbox.
const (
	spareUpper = "upper"
	spareWork  = "work"
)

// spares are directories, made beside the way of a start for the next sandbox: ext4 looks at each of its groups of
// blocks to place one apart from the others (see scratch.Spread), which is one of the longest steps of a short container.
type spares struct {
	dir   string
	areas string // the directory that they are moved to
	ready chan string
	taken chan struct{}
	stop  chan struct{}
	done  sync.WaitGroup
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

func (s *spares) make() (dir string, ok bool) {
	switch err := os.Mkdir(s.dir, 0o700); {
	case err == nil:
		scratch.Spread(s.dir)
	case !errors.Is(err, fs.ErrExist):
		return "", false
	}
	var here, there unix.Stat_t
	if unix.Lstat(s.dir, &here) != nil || unix.Lstat(s.areas, &there) != nil || here.Dev != there.Dev {
		return "", false
	}
	dir = filepath.Join(s.dir, rand.Text())
	first := filepath.Join(s.dir, "first")
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
