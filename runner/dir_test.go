package runner

import (
	"path/filepath"
	"sync"
	"testing"
)

// Who looks whether a task is driven keeps nobody from removing it.
func TestRemoveWhileOthersLook(t *testing.T) {
	d := taskDir(filepath.Join(t.TempDir(), "task"))
	ended := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				if f, err := d.hold(); err == nil {
					_ = f.Close()
				}
			}
		})
	}
	for range 20000 {
		if err := d.remove(); err != nil {
			t.Error(err)
			break
		}
	}
	close(ended)
	wg.Wait()
}
