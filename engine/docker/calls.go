package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/berth-project/berth"
)

// call bounds one call of the API whose answer is whole when it comes.
func (e *Engine) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, e.cfg.CallMax, e.noAnswer())
}

func (e *Engine) noAnswer() error {
	return fmt.Errorf("the daemon did not answer within %v: %w", e.cfg.CallMax, berth.ErrUnavailable)
}

// stream is an answer of the daemon that comes bit by bit.
type stream struct {
	body   io.ReadCloser
	ctx    context.Context //nolint:containedctx // the call's, ended by Close
	cancel context.CancelCauseFunc
	stall  time.Duration
}

// stream makes a call whose answer is a stream. It must begin within CallMax. From then on each read must bring
// something within stall; 0 is for streams that may be silent for as long as a container is.
func (e *Engine) stream(ctx context.Context, what string, stall time.Duration, call func(context.Context) (io.ReadCloser, error)) (*stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(e.cfg.CallMax, func() { cancel(e.noAnswer()) })
	body, err := call(ctx)
	if !late.Stop() && err == nil {
		_ = body.Close()
		err = e.noAnswer()
	}
	if err != nil {
		err = wrap(ctx, what, err)
		cancel(nil)
		return nil, err
	}
	return &stream{body: body, ctx: ctx, cancel: cancel, stall: stall}, nil
}

func (s *stream) Read(p []byte) (int, error) {
	if s.stall > 0 {
		late := time.AfterFunc(s.stall, func() {
			s.cancel(fmt.Errorf("the daemon's answer has stood still for %v: %w", s.stall, berth.ErrUnavailable))
		})
		defer late.Stop()
	}
	n, err := s.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && s.ctx.Err() != nil {
		err = context.Cause(s.ctx)
	}
	return n, err
}

// Close ends the call.
func (s *stream) Close() error {
	s.cancel(nil)
	return s.body.Close()
}
