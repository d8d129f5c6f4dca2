package network

import (
	"os"
	"slices"
	"sync"
	"time"
)

// restTime is how long a namespace that came back is left alone before it is looked at: what its task has set going, as the
// reports of groups that its sockets were in, has become packets by then, which are counted, and closed sockets are gone.
// These take two ticks of the kernel's clock; the rest is for a busy host.
const restTime = 250 * time.Millisecond

// Namespaces that came back, each of which is some 150 KB of the kernel's memory.
const (
	maxResting = 64 // are left alone
	maxReady   = 16 // wait for their next sandbox, with those that were made in advance
)

// pool has namespaces that are as new ones: making one takes about as long as all else of a container's start.
// Some are made in advance; those that come back are given away again once they are proved to be as new ones.
type pool struct {
	size int // how many are made in advance
	rest time.Duration
	low  chan struct{} // fewer than half are ready
	back chan struct{} // one came back
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	ready   []*os.File
	resting []resting // the first came back first
	like    *traces   // of the newest that was made in advance; nil: not known
}

type resting struct {
	ns    *os.File
	since time.Time
}

func newPool(size int) *pool {
	p := idlePool(size)
	if size > 0 {
		p.done.Go(p.fill)
		p.done.Go(p.prove)
	}
	return p
}

// idlePool is one in which nothing is done beside the way.
func idlePool(size int) *pool {
	p := &pool{size: size, rest: restTime}
	p.low, p.back, p.stop = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	return p
}

// get gives a namespace away: one that is ready, else a new one.
func (p *pool) get() (*os.File, error) {
	p.mu.Lock()
	n := len(p.ready)
	if n == 0 {
		p.mu.Unlock()
		tell(p.low)
		return newNamespace()
	}
	ns := p.ready[n-1]
	p.ready = p.ready[:n-1]
	p.mu.Unlock()
	if 2*(n-1) < p.size { // not before: one that comes back saves making one
		tell(p.low)
	}
	return ns, nil
}

// put takes a namespace back in which nothing runs any more, or closes it.
func (p *pool) put(ns *os.File) error {
	p.mu.Lock()
	room := !p.closed && len(p.resting) < maxResting && p.size > 0
	if room {
		p.resting = append(p.resting, resting{ns, time.Now()})
	}
	p.mu.Unlock()
	if !room {
		return ns.Close()
	}
	tell(p.back)
	return nil
}

func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fill makes namespaces in advance. A failure leaves the pool as it is: get meets the error itself.
func (p *pool) fill() {
	for {
		for p.lacks() {
			ns, err := newNamespace()
			if err != nil {
				break
			}
			like, err := look(ns)
			if err != nil {
				like = nil
			}
			p.mu.Lock()
			p.ready, p.like = append(p.ready, ns), like
			p.mu.Unlock()
		}
		select {
		case <-p.stop:
			return
		case <-p.low:
		}
	}
}

func (p *pool) lacks() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.closed && len(p.ready) < p.size
}

// prove looks at the namespaces that came back, several at a time where they come fast, and closes those that are not
// as new ones, or too many.
func (p *pool) prove() {
	for {
		select {
		case <-p.stop:
			return
		case <-p.back:
		}
		for {
			wait, any := p.nextRested()
			if !any {
				break
			}
			select {
			case <-p.stop:
				return
			case <-time.After(wait):
			}
			p.proveRested()
		}
	}
}

// nextRested says for how long to wait for those that rest.
func (p *pool) nextRested() (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.resting) == 0 {
		return 0, false
	}
	return max(time.Until(p.resting[0].since.Add(p.rest)), p.rest/8), true
}

func (p *pool) proveRested() {
	p.mu.Lock()
	n := 0
	for n < len(p.resting) && time.Since(p.resting[n].since) >= p.rest {
		n++
	}
	rested := slices.Clone(p.resting[:n])
	p.resting = slices.Delete(p.resting, 0, n)
	room, like := max(maxReady, p.size)-len(p.ready), p.like
	p.mu.Unlock()
	var proved []*os.File
	if like != nil {
		proved = like.same(rested, room)
	}
	p.mu.Lock()
	p.ready = append(p.ready, proved...)
	p.mu.Unlock()
	for _, r := range rested {
		if !slices.Contains(proved, r.ns) {
			_ = r.ns.Close()
		}
	}
}

func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	close(p.stop)
	p.done.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ns := range p.ready {
		_ = ns.Close()
	}
	for _, r := range p.resting {
		_ = r.ns.Close()
	}
	p.ready, p.resting = nil, nil
}
