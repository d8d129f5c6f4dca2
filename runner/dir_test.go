package runner

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/berth-project/berth"
)

// Who comes to drive a task that was removed meanwhile leaves no directory of it.
func TestDriveOfARemovedTask(t *testing.T) {
	b := newTestbed(t)
	lock, err := b.Runner.dir("gone").hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.take(t.Context(), "gone", lock, true, Hooks{}); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
	if found, resume := b.reconcile(t.Context(), "gone", nil); found != (Found{}) || resume {
		t.Errorf("%+v, %t", found, resume)
	}
	if there(string(b.Runner.dir("gone"))) {
		t.Error("its directory is there")
	}
}

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
