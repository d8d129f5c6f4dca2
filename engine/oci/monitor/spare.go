package monitor

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"sync"

	"github.com/berth-project/berth/scratch"
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
	ready chan string
	taken chan struct{}
	stop  chan struct{}
	done  sync.WaitGroup
}

// newSpares removes those of an earlier monitor. None is made before the first one is asked for.
func newSpares(dir string) (*spares, error) {
	if err := scratch.Remove(dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	scratch.Spread(dir)
	s := &spares{dir: dir, ready: make(chan string, maxSpares), taken: make(chan struct{}, 1), stop: make(chan struct{})}
	s.done.Go(s.fill)
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

// fill makes directories. A failure is for those to meet who make one where they need it.
func (s *spares) fill() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.taken:
		}
		for len(s.ready) < cap(s.ready) {
			dir := filepath.Join(s.dir, rand.Text())
			if os.Mkdir(dir, 0o700) != nil || os.Mkdir(filepath.Join(dir, spareUpper), 0o755) != nil || os.Mkdir(filepath.Join(dir, spareWork), 0o755) != nil {
				break // what there is of it goes with s.dir
			}
			s.ready <- dir // nobody else sends
		}
	}
}

func (s *spares) close() error {
	close(s.stop)
	s.done.Wait()
	return scratch.Remove(s.dir)
}
