package docker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-project/berth"
)

// server is a daemon that does so many things at a time.
type server struct {
	cores chan struct{}
	each  time.Duration
}

func (s *server) do() {
	s.cores <- struct{}{}
	time.Sleep(s.each)
	<-s.cores
}

// ask makes so many calls as p lets, and answers how many there were at once in the second half of them.
func ask(t *testing.T, p *pressure, all int, call func() error) int64 {
	var wg sync.WaitGroup
	var now, most, answered atomic.Int64
	for range all {
		wg.Go(func() {
			leave, err := p.turn(t.Context(), starting)
			if err != nil {
				t.Error(err)
				return
			}
			if n := now.Add(1); answered.Load() > int64(all)/2 && n > most.Load() {
				most.Store(n)
			}
			err = call()
			now.Add(-1)
			answered.Add(1)
			leave(err)
		})
	}
	wg.Wait()
	return most.Load()
}

// TestPressure has daemons answer a thousand calls at once: some that can do some at a time, and one that answers all at
// once. The first are not asked for far more than they can, the last for much. Also when they have become slower than they
// were, and when some calls are refused at once.
func TestPressure(t *testing.T) {
	const all, each = 1000, 20 * time.Millisecond
	for _, row := range []struct {
		name        string
		cores       int
		least, most int64 // how many are asked for at once, in the end
	}{
		{"a daemon that can do one", 1, pressureLeast, 8},
		{"a daemon that can do six at a time", 6, 8, 24},
		{"a daemon that can do sixteen at a time", 16, 20, 48},
		{"a daemon without bounds", 1000, 30, pressureMost},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p pressure
				s := &server{make(chan struct{}, row.cores), each}
				check := func(what string, got int64) {
					if got < row.least || got > row.most {
						t.Errorf("%s: %d are asked for at once, want %d to %d", what, got, row.least, row.most)
					}
				}
				check("at first", ask(t, &p, all, func() error { s.do(); return nil }))
				s.each = 5 * each
				check("slower", ask(t, &p, all, func() error { s.do(); return nil }))
				s.each = each
				var n atomic.Int64
				check("with refusals", ask(t, &p, all, func() error {
					if n.Add(1)%4 == 0 {
						time.Sleep(time.Millisecond)
						return berth.ErrInvalid
					}
					s.do()
					return nil
				}))
			})
		})
	}
}

// TestPressureOrder: containers that were made are started before more are made.
func TestPressureOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pressure
		s := &server{make(chan struct{}, 2), 20 * time.Millisecond}
		var made, most atomic.Int64
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for _, w := range []work{creating, starting} {
					leave, err := p.turn(t.Context(), w)
					if err != nil {
						t.Error(err)
						return
					}
					if w == starting {
						made.Add(-1)
					}
					s.do()
					if w == creating {
						most.Store(max(most.Load(), made.Add(1)))
					}
					leave(nil)
				}
			})
		}
		wg.Wait()
		if n := most.Load(); n > 16 {
			t.Errorf("%d containers are made that are not started yet", n)
		}
	})
}

// TestPressureGivenUp: who gives up waiting takes nobody's turn.
func TestPressureGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pressure
		for range pressureFirst {
			if err := p.enter(t.Context(), creating); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		given := make(chan error, 1)
		go func() { given <- p.enter(ctx, creating) }()
		synctest.Wait()
		let := make(chan error, 1)
		go func() { let <- p.enter(t.Context(), creating) }()
		synctest.Wait()
		cancel(berth.ErrCanceled)
		if err := <-given; !errors.Is(err, berth.ErrCanceled) {
			t.Errorf("given up: %v", err)
		}
		p.leave(creating, time.Millisecond, nil)
		if err := <-let; err != nil {
			t.Errorf("let in: %v", err)
		}
	})
}
