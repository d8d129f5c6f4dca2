package cli

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/berth-project/berth"
)

// endSignals ask berth to end.
// One that berth was started to ignore, as nohup does with SIGHUP, stays ignored.
func endSignals() []os.Signal {
	return slices.DeleteFunc([]os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}, signal.Ignored)
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
