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

// TestPressure has daemons answer a thousand calls at once: one that can do six at a time, and one that answers all at
// once. The first is not asked for far more than it can, the second for much.
func TestPressure(t *testing.T) {
	for _, row := range []struct {
		name        string
		cores       int
		least, most int // how many are asked for at once, in the end
	}{
		{"a daemon that can do six at a time", 6, 6, 24},
		{"a daemon that can do one", 1, pressureLeast, 8},
		{"a daemon without bounds", 1000, 30, pressureMost},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const all, each = 1000, 20 * time.Millisecond
				var p pressure
				var wg sync.WaitGroup
				cores := make(chan struct{}, row.cores)
				var now, most atomic.Int64
				var answered atomic.Int64
				for range all {
					wg.Go(func() {
						if err := p.enter(t.Context()); err != nil {
							t.Error(err)
							return
						}
						began := time.Now()
						if n := now.Add(1); answered.Load() > all/2 && n > most.Load() {
							most.Store(n)
						}
						cores <- struct{}{}
						time.Sleep(each)
						<-cores
						now.Add(-1)
						answered.Add(1)
						p.leave(time.Since(began))
					})
				}
				wg.Wait()
				if got := int(most.Load()); got < row.least || got > row.most {
					t.Errorf("%d are asked for at once, want %d to %d", got, row.least, row.most)
				}
			})
		})
	}
}

// TestPressureGivenUp: who gives up waiting takes nobody's turn.
func TestPressureGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pressure
		for range pressureFirst {
			if err := p.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		given := make(chan error, 1)
		go func() { given <- p.enter(ctx) }()
		synctest.Wait()
		let := make(chan error, 1)
		go func() { let <- p.enter(t.Context()) }()
		synctest.Wait()
		cancel(berth.ErrCanceled)
		if err := <-given; !errors.Is(err, berth.ErrCanceled) {
			t.Errorf("given up: %v", err)
		}
		p.leave(time.Millisecond)
		if err := <-let; err != nil {
			t.Errorf("let in: %v", err)
		}
	})
}
