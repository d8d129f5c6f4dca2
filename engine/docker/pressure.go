package docker

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// work is what a daemon is asked for, by how long it takes.
type work int

const (
	creating work = iota
	filling       // creating, with files of the image copied into volumes
	starting
	startingLent // with devices
	works
)

// first reports whether the work comes before such as was asked for earlier: what was begun is ended first, so that not
// all containers are made before the first one runs.
func (w work) first() bool { return w >= starting }

// pressure bounds how many calls that are much work a daemon gets at once, by how long it takes to answer. Each kind of
// work has its best time; a daemon that does n things at a time answers when it is asked for m of them m/n times later.
// It is to have a few more than it does, so that it never waits, and not many more, whose only effect is that each takes
// longer: a processor that runs much at once does less. The zero value is ready.
type pressure struct {
	mu      sync.Mutex
	limit   float64
	flying  int
	waiting [2][]chan struct{} // in their order; the first of the two before the other
	best    [works]time.Duration
	// Of late, in means over answers: the times that they took, and the best ones of their kinds.
	took, least float64
	answers     int // since the best times were forgotten
	doubts      int // of them in a row, that they hold still
}

const (
	pressureFirst = 2 // so that the best times are known: they are not to be seen of a daemon that has much to do
	pressureLeast = 4 // fewer leave even a small daemon idle, whatever the answers seem to say
	pressureMost  = 64
	// tolerance is by how much longer than at best answers may take with no room for more.
	tolerance = 2
	// recent is over how many answers means are taken.
	recent = 16
	// doubtMost is how many answers in a row may take too long though the fewest calls are asked for, and answersMost how
	// many there are in all, until the best times are found out anew: daemons change.
	doubtMost   = 32
	answersMost = 4096
)

// enter waits for its turn.
func (p *pressure) enter(ctx context.Context, w work) error {
	p.mu.Lock()
	if p.limit == 0 {
		p.limit = pressureFirst
	}
	if p.flying < int(p.limit) {
		p.flying++
		p.mu.Unlock()
		return nil
	}
	turn, queue := make(chan struct{}), 1
	if w.first() {
		queue = 0
	}
	p.waiting[queue] = append(p.waiting[queue], turn)
	p.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiting[queue], turn); i >= 0 {
		p.waiting[queue] = slices.Delete(p.waiting[queue], i, i+1)
		return context.Cause(ctx)
	}
	p.flying-- // the turn came at the same time
	p.next()
	return context.Cause(ctx)
}

// leave says how long the answer took. One that is an error tells no best time: a refusal is no work.
func (p *pressure) leave(w work, took time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	full := p.waits()
	p.flying--
	if err == nil && (p.best[w] == 0 || took < p.best[w]) {
		p.best[w] = max(took, 1)
	}
	if p.best[w] > 0 && took >= p.best[w] {
		p.adapt(w, took, full)
	}
	p.next()
}

// adapt changes the limit. full: somebody waits; a bound that nobody reaches tells nothing.
func (p *pressure) adapt(w work, took time.Duration, full bool) {
	if p.took == 0 {
		p.took, p.least = float64(took), float64(p.best[w])
	}
	p.took += (float64(took) - p.took) / recent
	p.least += (float64(p.best[w]) - p.least) / recent
	over := 1 - min(1, tolerance*p.least/p.took) // the part of what is asked for that is too much
	step := math.Sqrt(p.limit)/p.limit - over    // a limit's answers change it by all of both
	p.answers++
	switch {
	case step > 0:
		if p.doubts = 0; full {
			p.limit = min(pressureMost, p.limit+step)
		}
	case p.limit > pressureLeast:
		p.limit = max(pressureLeast, p.limit+step)
	default:
		p.doubts++
	}
	if p.doubts > doubtMost || p.answers > answersMost {
		p.limit, p.best, p.took, p.least, p.answers, p.doubts = pressureFirst, [works]time.Duration{}, 0, 0, 0, 0
	}
}

func (p *pressure) waits() bool { return len(p.waiting[0])+len(p.waiting[1]) > 0 }

// next lets in who waits, as many as may; mu is held.
func (p *pressure) next() {
	for p.waits() && p.flying < int(p.limit) {
		queue := 0
		if len(p.waiting[0]) == 0 {
			queue = 1
		}
		close(p.waiting[queue][0])
		p.waiting[queue] = p.waiting[queue][1:]
		p.flying++
	}
}

// turn waits for the turn to make a call. leave is to be called with its error when it is answered.
func (p *pressure) turn(ctx context.Context, w work) (leave func(error), err error) {
	if err := p.enter(ctx, w); err != nil {
		return nil, err
	}
	began := time.Now()
	return func(err error) { p.leave(w, time.Since(began), err) }, nil
}
