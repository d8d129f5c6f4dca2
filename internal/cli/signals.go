package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-project/berth"
)

// endSignals ask berth to end.
// A hangup or quit that berth was started to ignore, as by nohup, stays ignored.
func endSignals() []os.Signal {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	return signals
}

// notify ends a context, with cause ErrCanceled, at a signal that asks berth to end.
func notify(ctx context.Context) (context.Context, context.CancelFunc) {
	return twice(ctx, nil)
}

// twice is notify that calls again at each further signal.
func twice(ctx context.Context, again func()) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, endSignals()...)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-ch:
			}
			if ctx.Err() == nil {
				cancel(berth.ErrCanceled)
			} else if again != nil {
				again()
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(stop)
		<-done
		cancel(nil)
	}
}
