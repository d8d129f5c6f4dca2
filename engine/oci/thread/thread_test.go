package thread

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwn takes all threads there are, so that the main one would be among them.
func TestOwn(t *testing.T) {
	const many = 50
	var all, running sync.WaitGroup
	running.Add(many)
	failed := errors.New("failed")
	seen := make(chan int, many)
	for range many {
		all.Go(func() {
			err := Own(func() error {
				running.Done()
				running.Wait()
				seen <- unix.Gettid()
				return failed
			})
			if !errors.Is(err, failed) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	threads := map[int]bool{os.Getpid(): true}
	for range many {
		threads[<-seen] = true
	}
	if len(threads) != many+1 {
		t.Errorf("%d threads, with the main one", len(threads))
	}
}
