package docker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// sparse says when to tell of what goes on: once it has for a while, and again after longer and longer.
type sparse struct {
	after time.Duration // 0 is at once
	since time.Time
	said  bool
	told  time.Duration // into it, when it was told of last
}

// awayWord is how long a daemon may be away before that is told, and the least between two words of what goes on.
const awayWord = 10 * time.Second

// due notes that it goes on, and answers for how long, and whether that is to be told now.
func (s *sparse) due(since time.Time) (time.Duration, bool) {
	if s.since.IsZero() {
		s.since = since
	}
	d := time.Since(s.since)
	if d < s.after || s.said && d < max(awayWord, 2*s.told) {
		return d, false
	}
	s.said, s.told = true, d
	return d, true
}

// over notes that it goes on no more, and answers how long it has, and whether it was told of.
func (s *sparse) over() (d time.Duration, said bool) {
	d, said = time.Since(s.since), s.said
	*s = sparse{after: s.after}
	return d, said
}

// outage tells of a daemon that does not answer.
type outage struct {
	tell func(time.Duration, error) // nil tells nobody
	mu   sync.Mutex
	word sparse
	last time.Time // when it was noted last
}

func (e *Engine) newOutage() *outage { return &outage{tell: e.cfg.Away, word: sparse{after: awayWord}} }

// silent notes that the daemon has not answered since then at least.
func (o *outage) silent(since time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = time.Now()
	if d, due := o.word.due(since); due && o.tell != nil {
		o.tell(d, err)
	}
}

// answered notes that it answers.
func (o *outage) answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d, said := o.word.over(); said && o.tell != nil {
		o.tell(d, nil)
	}
}

// pinged notes that it has answered a ping, sent then. That is no answer where its other calls have failed of late.
func (o *outage) pinged(began time.Time) {
	o.mu.Lock()
	late := began.Sub(o.last) >= 2*reconnect
	o.mu.Unlock()
	if late {
		o.answered()
	}
}

// patience is how long a daemon may take to answer a ping, be it busy; one that takes longer hangs.
func (e *Engine) patience() time.Duration { return e.cfg.Watchdog / 4 }

// watchAnswers asks the daemon for nothing but an answer, again and again, until ctx ends: one that hangs keeps its
// connections, so that who waits for a container's end sees no difference. One that is gone is told of by those that break.
func (e *Engine) watchAnswers(ctx context.Context, o *outage) {
	pause := e.patience() / 3
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began, err := e.pings.ask(ctx, e, pause/2)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			o.pinged(began)
		case errors.Is(err, errHangs):
			o.silent(began, err)
		}
	}
}

// pings are asked one at a time. One answer is for all who want one that is not older than they say.
type pings struct {
	turn  chan struct{} // holds one while nobody asks
	began time.Time
	at    time.Time // of the answer, or of its being given up
	err   error
}

func newPings() pings {
	p := pings{turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	return p
}

var errHangs = fmt.Errorf("%w: no answer to a ping", berth.ErrUnavailable)

// ask answers when the ping was sent, too. errHangs is that there was no answer in time.
func (p *pings) ask(ctx context.Context, e *Engine, age time.Duration) (began time.Time, err error) {
	select {
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	case <-p.turn:
	}
	defer func() { p.turn <- struct{}{} }()
	if time.Since(p.at) < age {
		return p.began, p.err
	}
	p.began = time.Now()
	cctx, cancel := context.WithTimeoutCause(ctx, e.patience(), fmt.Errorf("%w within %v", errHangs, e.patience()))
	defer cancel()
	if _, err = e.api().Ping(cctx, client.PingOptions{}); err != nil {
		err = wrap(cctx, "the daemon", err)
	}
	if ctx.Err() != nil { // who asked gave up: that is no answer for others
		return p.began, context.Cause(ctx)
	}
	p.at, p.err = time.Now(), err
	return p.began, err
}
