package docker

import (
	"context"
	"sync"
	"time"
)

// pressure bounds how many calls of one kind, which take about as long, a daemon gets at once, by how long it takes to answer: while
// more at once cost nothing, more are; when answers take far longer than they do at best, fewer. The zero value is ready.
type pressure struct {
	mu      sync.Mutex
	limit   float64
	flying  int
	waiting []chan struct{} // in their order
	best    time.Duration   // of an answer; forgotten slowly, since daemons change
	usual   time.Duration   // of late
}

const (
	pressureFirst = 8
	pressureLeast = 4 // fewer leave even a small daemon idle, whatever the answers seem to say
	pressureMost  = 64
	// tolerance is by how much longer than at best answers may take before fewer are asked for: a daemon that is used
	// well answers each of several questions later.
	tolerance = 3
)

// enter waits for its turn.
func (p *pressure) enter(ctx context.Context) error {
	p.mu.Lock()
	if p.limit == 0 {
		p.limit = pressureFirst
	}
	if p.flying < int(p.limit) {
		p.flying++
		p.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	p.waiting = append(p.waiting, turn)
	p.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, w := range p.waiting {
		if w == turn {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			return context.Cause(ctx)
		}
	}
	p.flying-- // the turn came at the same time
	p.next()
	return context.Cause(ctx)
}

// leave says how long the answer took.
func (p *pressure) leave(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	full := len(p.waiting) > 0
	p.flying--
	if p.usual == 0 {
		p.best, p.usual = took, took
	}
	p.usual += (took - p.usual) / 8
	p.best += p.best / 4096
	p.best = min(p.best, took)
	switch {
	case float64(p.usual) > tolerance*float64(p.best):
		p.limit = max(pressureLeast, p.limit-p.limit*0.05)
	case full: // a bound that nobody reaches tells nothing
		p.limit = min(pressureMost, p.limit+1/p.limit)
	}
	p.next()
}

// next lets in who waits, as many as may; mu is held.
func (p *pressure) next() {
	for len(p.waiting) > 0 && p.flying < int(p.limit) {
		close(p.waiting[0])
		p.waiting = p.waiting[1:]
		p.flying++
	}
}

// turn waits for the turn to make a call. leave is to be called with the answer.
func (p *pressure) turn(ctx context.Context) (leave func(), err error) {
	if err := p.enter(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	return func() { p.leave(time.Since(began)) }, nil
}
