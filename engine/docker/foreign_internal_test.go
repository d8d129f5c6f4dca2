package docker

import (
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// TestForeign: whether a container ended by itself, by what the daemon remembers of it, or why it was not asked.
func TestForeign(t *testing.T) {
	for _, row := range []struct {
		name string
		h    history
		live bool
		code int
		want berth.Reason
	}{
		{"it says that nothing was", history{known: true}, false, 0, berth.Exited},
		{"a signal of another's", history{known: true, killed: []int{15}}, false, 0, berth.Signaled},
		{"started anew", history{known: true, restarted: true}, false, 0, berth.Lost},
		{"started anew, and a code of its stop", history{known: true, restarted: true}, false, 143, berth.Signaled},
		{"it does not answer", history{}, false, 143, berth.Exited},
		{"it is being stopped", history{gone: true}, false, 0, berth.Lost},
		{"it is being stopped, and a code of that", history{gone: true}, false, 143, berth.Signaled},
		{"it is being stopped, and leaves containers alone", history{gone: true}, true, 143, berth.Exited},
	} {
		l := &life{dir: t.TempDir(), rec: &record{}}
		e := berth.Exit{Reason: berth.Exited, Code: row.code, Ended: time.Now()}
		if l.foreign(&e, row.h, row.live, time.Time{}); e.Reason != row.want {
			t.Errorf("%s, code %d: %s, want %s", row.name, row.code, e.Reason, row.want)
		}
	}
}
