package device

import (
	"context"
	"fmt"
	"time"

	"github.com/berth-project/berth"
)

// AnswerTimeout is how long a driver may take to answer, where nothing else is said.
const AnswerTimeout = 30 * time.Second

// Ask asks a vendor for its devices. A driver that has not answered within limit (0 is AnswerTimeout) is
// berth.ErrUnavailable.
func Ask(ctx context.Context, v Vendor, limit time.Duration) ([]Device, error) {
	return Within(ctx, limit, "the driver of "+v.Name(), func() ([]Device, error) { return v.Devices(ctx) })
}

// Within calls what reads of a driver's files, for as long as limit allows (0 is AnswerTimeout): a driver that hangs takes
// along the thread that asks it, which is left behind. who is asked is for the error, of the kind berth.ErrUnavailable.
func Within[T any](ctx context.Context, limit time.Duration, who string, call func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	if limit == 0 {
		limit = AnswerTimeout
	}
	got := make(chan answer, 1)
	go func() { // ends when the driver answers
		value, err := call()
		got <- answer{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var none T
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case <-timer.C:
		return none, fmt.Errorf("%s: %w: it has not answered for %s; look for its messages with: dmesg", who, berth.ErrUnavailable, berth.FormatDuration(limit))
	}
}
