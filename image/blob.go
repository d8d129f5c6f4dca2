package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/berth-project/berth"
)

const (
	backoffMax    = 10 * time.Second
	retryAfterMax = time.Minute // a registry that asks for more is not waited for longer at a time
)

// errStalled is why a transfer was broken off that brought nothing.
var errStalled = errors.New("no byte came")

// blobReader reads a blob from a registry. When the connection breaks or brings nothing for too long it goes
// on where it was, by a range request; each try that brings something earns new tries.
type blobReader struct {
	ctx      context.Context //nolint:containedctx // a reader has no other way to be ended
	reg      *registry
	client   *http.Client
	url      string
	urls     []string // where else the blob lies, if the registry has it not
	size     int64    // bytes of the blob
	off      int64    // bytes read so far
	body     io.ReadCloser
	watch    *watchdog
	failures int
	progress func(done, total int64)
}

// blob opens a layer's blob. Errors come from Read.
func (r *registry) blob(ctx context.Context, d v1.Descriptor, progress func(done, total int64)) io.ReadCloser {
	return &blobReader{
		ctx: ctx, reg: r, client: r.client, url: r.url("blobs", d.Digest.String()), urls: d.URLs, size: d.Size, progress: progress,
	}
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		if b.off >= b.size {
			return 0, io.EOF
		}
		n, err := b.read(p)
		if n > 0 {
			b.off += int64(n)
			b.failures = 0
			if b.progress != nil {
				b.progress(b.off, b.size)
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		if err := b.again(err); err != nil {
			return 0, err
		}
	}
}

// read reads from the connection, opened first where none is.
func (b *blobReader) read(p []byte) (int, error) {
	if b.body == nil {
		if err := b.connect(); err != nil {
			return 0, err
		}
	}
	if left := b.size - b.off; int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.body.Read(p)
	b.watch.reset()
	if n > 0 {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return 0, b.watch.cause(err)
}

// again waits before the next try, or gives the error up.
func (b *blobReader) again(err error) error {
	b.disconnect()
	if cause := context.Cause(b.ctx); cause != nil {
		return cause
	}
	if b.elsewhere(err) {
		return nil
	}
	b.failures++
	wait, retry := b.reg.store.retry(b.failures, err)
	if !retry {
		return b.reg.kind(err)
	}
	b.reg.store.tellRetry(b.reg.tell, b.failures, err)
	b.reg.store.log.Debug("a transfer broke; it goes on", "url", b.url, "offset", b.off, "error", err, "wait", wait)
	return sleep(b.ctx, wait)
}

// elsewhere turns to the next place where a layer lies that the registry may not spread (a foreign layer), and
// reports whether there is one. Credentials are not for such places, and neither is http.
func (b *blobReader) elsewhere(err error) bool {
	var status *transport.Error
	if len(b.urls) == 0 || b.client == b.reg.client && (!errors.As(err, &status) || status.StatusCode != http.StatusNotFound) {
		return false
	}
	b.client, b.url, b.urls = b.reg.others, b.urls[0], b.urls[1:]
	return true
}

// connect asks for the rest of the blob.
func (b *blobReader) connect() error {
	b.watch = newWatchdog(b.ctx, b.reg.store.opts.Stall)
	req, err := http.NewRequestWithContext(b.watch.ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return err
	}
	if b.off > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(b.off, 10)+"-")
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return b.watch.cause(err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return withRetryAfter(err, resp)
	}
	b.body = resp.Body
	skip := b.off
	if resp.StatusCode == http.StatusPartialContent {
		start, err := rangeStart(resp.Header.Get("Content-Range"))
		if err != nil || start > b.off {
			return fmt.Errorf("%w: the registry answered a request for bytes from %d on with %q", berth.ErrUnavailable, b.off, resp.Header.Get("Content-Range"))
		}
		skip = b.off - start
	}
	// A registry that knows no ranges sends everything again.
	return b.skip(skip)
}

func (b *blobReader) skip(n int64) error {
	buf := make([]byte, min(n, 64<<10))
	for n > 0 {
		m, err := b.body.Read(buf[:min(n, int64(len(buf)))])
		b.watch.reset()
		if n -= int64(m); err != nil && n > 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return b.watch.cause(err)
		}
	}
	return nil
}

// rangeStart reads the first offset of "bytes 10-99/100".
func rangeStart(s string) (int64, error) {
	s, ok := strings.CutPrefix(s, "bytes ")
	first, _, ok2 := strings.Cut(s, "-")
	if !ok || !ok2 {
		return 0, fmt.Errorf("%w: no range: %q", berth.ErrInvalid, s)
	}
	return strconv.ParseInt(first, 10, 64)
}

func (b *blobReader) disconnect() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
	if b.watch != nil {
		b.watch.stop()
		b.watch = nil
	}
}

// Close ends the transfer.
func (b *blobReader) Close() error {
	b.disconnect()
	return nil
}

// watchdog ends a context when nothing happens for too long.
type watchdog struct {
	ctx    context.Context //nolint:containedctx // it is what the watchdog makes
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func newWatchdog(ctx context.Context, limit time.Duration) *watchdog {
	w := &watchdog{limit: limit}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limit, func() {
		w.cancel(fmt.Errorf("%w for %s", errStalled, limit))
	})
	return w
}

func (w *watchdog) reset() { w.timer.Reset(w.limit) }

// cause is what broke the transfer off: the watchdog where it did, else err.
func (w *watchdog) cause(err error) error {
	if cause := context.Cause(w.ctx); cause != nil && errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// sleep waits, unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
