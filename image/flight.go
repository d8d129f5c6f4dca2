package image

import (
	"context"
	"maps"
	"sync"

	"github.com/berth-project/berth"
)

// flight is one pull that several callers wait for. It ends early when none of them is left.
type flight struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	image  berth.Image
	err    error

	mu        sync.Mutex
	waiters   int
	listeners map[int]func(berth.Progress)
	next      int
}

// share runs pull, or joins the one that runs already under the same key.
func (s *Store) share(ctx context.Context, key string, progress func(berth.Progress), pull func(context.Context, func(berth.Progress)) (berth.Image, error)) (berth.Image, error) {
	s.mu.Lock()
	f := s.flights[key]
	var n int
	joined := false
	if f != nil {
		n, joined = f.join(progress)
	}
	if !joined {
		f, n = s.launch(ctx, key, progress, pull)
	}
	s.mu.Unlock()

	select {
	case <-f.done:
		return f.image, f.err
	case <-ctx.Done():
		f.leave(n, context.Cause(ctx))
		return berth.Image{}, context.Cause(ctx)
	}
}

// launch starts a flight for its n-th waiter, who misses nothing of it; s.mu is held.
func (s *Store) launch(ctx context.Context, key string, progress func(berth.Progress), pull func(context.Context, func(berth.Progress)) (berth.Image, error)) (f *flight, n int) {
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f = &flight{cancel: cancel, done: make(chan struct{}), listeners: map[int]func(berth.Progress){}}
	n, _ = f.join(progress)
	s.flights[key] = f
	s.running.Go(func() {
		f.image, f.err = pull(own, f.report)
		s.mu.Lock()
		if s.flights[key] == f {
			delete(s.flights, key)
		}
		s.mu.Unlock()
		cancel(nil)
		close(f.done)
	})
	return f, n
}

// join adds a waiter; false if the last one has left and the flight is being ended.
func (f *flight) join(progress func(berth.Progress)) (n int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiters < 0 {
		return 0, false
	}
	f.waiters++
	f.next++
	if progress != nil {
		f.listeners[f.next] = progress
	}
	return f.next, true
}

// leave takes a waiter off; with the last one the flight ends, for its cause.
func (f *flight) leave(n int, cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.listeners, n)
	if f.waiters--; f.waiters == 0 {
		f.waiters = -1
		f.cancel(cause)
	}
}

// report tells every waiter how far the pull is.
func (f *flight) report(p berth.Progress) {
	f.mu.Lock()
	listeners := maps.Clone(f.listeners)
	f.mu.Unlock()
	for _, l := range listeners {
		l(p)
	}
}
