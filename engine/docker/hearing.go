package docker

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// hearing is what a daemon tells of this owner's containers, unasked, while somebody hears: to ask for each container when
// it has ended takes longer. The zero value hears nothing.
type hearing struct {
	patience time.Duration // where it is set, for dropTime and toldMax, which a busy machine takes longer than

	mu     sync.Mutex
	starts int
	open   bool // it is heard, or to be
	live   bool
	told   map[string]*told // by the daemon's ID: containers that were started since
}

// told is what was told of one container.
type told struct {
	history
	done chan struct{} // closed: its end was told, or nothing more will be
	died time.Time     // when its end was, by the daemon's clock; zero where it was not
}

// dropTime is how long a daemon takes at least to tell of a signal before it lets that be: it does so where this process takes
// in what is told too slowly, or where it is itself held up. The container's end is told of after that.
const dropTime = 100 * time.Millisecond

// toldMax is how long the end is waited for of a container that has ended.
const toldMax = 200 * time.Millisecond

// manyStarts is from how many starts on a process hears: each that does is told of the containers of all, so that hundreds
// which run one each would have the daemon tell of each hundreds of times.
const manyStarts = 2

// hear begins to hear, if that is not done and there is much to hear. Podman tells of what was done to a container when its end has been told.
func (e *Engine) hear(host *hostInfo) {
	h := &e.hearing
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.starts++; h.starts < manyStarts || h.open || host.podman || host.remote {
		return
	}
	h.open = true
	e.wg.Go(func() {
		if err := h.listen(e.ctx, e); e.ctx.Err() == nil {
			e.cfg.Logger.Debug("the daemon is not heard any more: it is asked", "error", err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, t := range h.told {
			close(t.done)
		}
		h.open, h.live, h.told = false, false, nil
	})
}

// listen hears until the stream ends.
func (h *hearing) listen(ctx context.Context, e *Engine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// From a time on: what comes between the answer's beginning and the daemon's attention is told, too.
	res := e.api().Events(ctx, client.EventsListOptions{
		Since:   stamp(time.Now()),
		Filters: e.filter().Add("type", "container").Add("event", "kill").Add("event", "die"),
	})
	select {
	case err := <-res.Err:
		return err
	default:
	}
	h.mu.Lock()
	h.live, h.told = true, map[string]*told{}
	h.mu.Unlock()
	for {
		select {
		case m := <-res.Messages:
			h.take(&m)
		case err := <-res.Err:
			return err
		}
	}
}

// take takes a message. The daemon sends a signal, and tells of it if it tells of it at all, before it sees the end that it
// brings about.
func (h *hearing) take(m *events.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.told[m.Actor.ID]
	if t == nil {
		return
	}
	switch m.Action {
	case events.ActionKill:
		t.add(m)
	case events.ActionDie:
		t.died = time.Unix(0, m.TimeNano)
		delete(h.told, m.Actor.ID)
		close(t.done)
	default:
	}
}

// add notes a signal.
func (h *history) add(m *events.Message) {
	n := signalNumber(m.Actor.Attributes["signal"])
	if h.killed = append(h.killed, n); h.at.IsZero() {
		h.at = time.Unix(0, m.TimeNano)
	}
}

// of has what is told of a container kept; nil where nothing is heard. It is to be called before the start.
func (h *hearing) of(id string) *told {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.live {
		return nil
	}
	t := &told{history: history{known: true}, done: make(chan struct{})}
	h.told[id] = t
	return t
}

func (h *hearing) or(bound time.Duration) time.Duration {
	if h.patience > 0 {
		return h.patience
	}
	return bound
}

// forget: nobody wants to know any more.
func (h *hearing) forget(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.told[id]; t != nil {
		delete(h.told, id)
		close(t.done)
	}
}

// past is what happened to a container.
type past struct {
	l     *life
	r     *record
	asked chan history // the daemon's answer; nil where it was not asked yet
	leave context.CancelFunc
}

// begin has the daemon asked where it will be in any case, as the container has ended: its answer comes while it is asked how.
// Not Podman, which tells of some things only later.
func (p *past) begin(ctx context.Context) {
	l := p.l
	l.mu.Lock()
	t, started := l.told, l.started
	l.mu.Unlock()
	l.e.mu.Lock()
	host := l.e.host
	l.e.mu.Unlock()
	if p.asked != nil || host == nil || host.podman || t != nil && time.Since(started) < l.e.hearing.or(dropTime) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	asked := make(chan history, 1)
	p.asked, p.leave = asked, cancel
	l.e.wg.Go(func() {
		defer cancel()
		asked <- l.history(ctx, p.r)
	})
}

// forget: it has not ended, or the answer is waited for no more.
func (p *past) forget() {
	if p.asked != nil {
		p.leave()
	}
	p.asked = nil
}

// ask is also for an answer that did not come: a daemon that ends takes no more connections, or leaves them waiting, and this
// one's last may have been taken by who asked how the container ended.
func (p *past) ask(ctx context.Context) history {
	var before history
	if p.asked != nil {
		select {
		case before = <-p.asked:
		case <-time.After(answerTime):
		}
		p.forget()
		if before.known {
			return before
		}
	}
	return p.l.history(ctx, p.r).after(before)
}

// after is an answer, or none, after another: a daemon that was gone may have ended containers, until it is there and says so.
func (h history) after(before history) history {
	h.gone = !h.known && (h.gone || before.gone)
	return h
}

// insist is ask for an answer that must come where the daemon is, or comes back soon: it may be held up, or end.
func (p *past) insist(ctx context.Context) history {
	asked := p.ask(ctx)
	again, cancel := context.WithTimeout(ctx, eventsTime)
	defer cancel()
	for try := 1; !asked.known && (asked.gone || try < 3) && again.Err() == nil; try++ {
		select {
		case <-again.Done():
		case <-time.After(reconnect):
			asked = p.l.history(again, p.r).after(asked)
		}
	}
	return asked
}

// of is what happened to the container, which has ended so: what was told, or else what the daemon answers. It is asked, too,
// where it may have told of less than there was: where none was told of but the end is that of a signal, and where the
// container ran for long enough that what was sent to it may have been left out, be its code 0.
func (p *past) of(ctx context.Context, s *container.State) history {
	l := p.l
	l.mu.Lock()
	t, id := l.told, l.id
	l.mu.Unlock()
	switch {
	case l.e.isPodman.Load():
		return l.history(ctx, p.r)
	case t == nil:
		return p.insist(ctx)
	}
	late := time.NewTimer(l.e.hearing.or(toldMax))
	defer late.Stop()
	select {
	case <-t.done:
	case <-late.C:
	case <-ctx.Done():
	}
	l.e.hearing.forget(id)
	<-t.done
	whole := !t.died.IsZero()
	_, explained := l.endingSignal(t.killed, codeOf(s))
	if whole && (explained || ranFor(s, t.died) < l.e.hearing.or(dropTime) && !l.killCode(s.ExitCode)) {
		return t.history
	}
	asked := p.insist(ctx)
	if (whole || explained) && len(asked.killed) <= len(t.killed) { // it may have forgotten some, and all where it was started anew since
		return t.history
	}
	return asked
}

// codeOf is the code that a container exited with; 0 where no state is told.
func codeOf(s *container.State) int {
	if s == nil {
		return 0
	}
	return s.ExitCode
}

// ranFor is how long a container ran until then, by the daemon's clock.
func ranFor(s *container.State, until time.Time) time.Duration {
	began, err := time.Parse(time.RFC3339Nano, s.StartedAt)
	if err != nil {
		return math.MaxInt64
	}
	return until.Sub(began)
}

// stamp is a time as the API takes it.
func stamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
