package cli

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth"
)

// phase tells what takes long of what has no progress of its own: inputs that are fetched, outputs that are
// collected.
type phase struct {
	say  func(format string, args ...any)
	stop context.CancelFunc
	done sync.WaitGroup
	why  atomic.Pointer[string] // what went wrong last, and is tried again; "" or nil where nothing has
}

// retrying notes why something is tried again.
func (p *phase) retrying(text string) { p.why.Store(&text) }

// stillEvery is how often a phase is told of again.
const stillEvery = 10 * time.Second

// at follows a task through its life, by the runner's points.
func (p *phase) at(point string, t *berth.Task) {
	switch point {
	case "admitted":
		for _, in := range t.Inputs {
			if strings.Contains(in.URL, "://") && !strings.HasPrefix(in.URL, "file://") {
				p.begin("fetching inputs")
				return
			}
		}
	case "collecting":
		if len(t.Outputs) > 0 {
			p.begin("collecting outputs")
		}
	case "prepared", "collected":
		p.end()
	}
}

func (p *phase) begin(what string) {
	p.end()
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	began := time.Now()
	p.done.Go(func() {
		if sleep(ctx, silence) != nil {
			return
		}
		p.say("%s", what)
		for sleep(ctx, stillEvery) == nil {
			why := ""
			if text := p.why.Load(); text != nil && *text != "" {
				why = ", trying again: " + *text
			}
			p.say("%s, for %s%s", what, berth.FormatDuration(time.Since(began).Round(time.Second)), why)
		}
	})
}

func (p *phase) end() {
	if p.stop != nil {
		p.stop()
		p.done.Wait()
		p.stop = nil
	}
}
