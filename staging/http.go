package staging

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// HTTP fetches files from http and https URLs. A broken transfer is resumed where it broke, if the server
// can do that and says that the file is still the same. The zero value works.
type HTTP struct {
	Client *http.Client
	// Tries is how often in a row a file is tried for without a byte gained; 0 is 5.
	Tries int
	// Backoff is the wait after the first failed try; it doubles, up to 30 times itself, and varies by half.
	// 0 is a second. A Retry-After of the server counts, up to two minutes.
	Backoff time.Duration
	// Stall is how long a server may send nothing before the try has failed; 0 is a minute.
	Stall time.Duration
	// Retrying is told of tries that failed before another, for people, in one line; nil is told nothing. It may be
	// called by several goroutines.
	Retrying func(text string)
	Logger   *slog.Logger
}

var _ Source = (*HTTP)(nil)

const (
	defaultTries   = 5
	defaultBackoff = time.Second
	defaultStall   = time.Minute
	maxBackoff     = 30 // times the first
	maxRetryAfter  = 2 * time.Minute
	maxRedirects   = 10
)

// Schemes are http and https.
func (h *HTTP) Schemes() []string { return []string{"http", "https"} }

// Fetch downloads a file to dst. Kinds of error: ErrNotFound (404, 410), ErrDenied (401, 403, 407, 451, or
// a certificate that cannot be verified), ErrInvalid (other answers that no retry will change),
// ErrUnavailable (after retries), ErrUnsupported (a directory), ErrExhausted (disk full).
func (h *HTTP) Fetch(ctx context.Context, location string, typ berth.FileType, dst string) error {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%s: %w: not a URL", redact(location), berth.ErrInvalid)
	}
	if typ == berth.Directory {
		return fmt.Errorf("fetch %s: %w: HTTP has no directories", redact(location), berth.ErrUnsupported)
	}
	part, err := os.OpenFile(dst+partSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	d := &download{http: h, url: u, file: part}
	err = d.run(ctx)
	if err == nil {
		err = part.Chmod(0o644)
	}
	if err = errors.Join(err, part.Close()); err == nil {
		err = os.Rename(part.Name(), dst)
	}
	if err != nil {
		return errors.Join(err, removeAll(part.Name()))
	}
	return nil
}

func (h *HTTP) log() *slog.Logger {
	if h.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Logger
}

func (h *HTTP) client() *http.Client {
	c := http.Client{}
	if h.Client != nil {
		c = *h.Client
	}
	if h.Client == nil || h.Client.CheckRedirect == nil {
		c.CheckRedirect = checkRedirect
	}
	return &c
}

// errRedirect ends a chain of redirections that is not followed.
var errRedirect = errors.New("redirection not followed")

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d of them", errRedirect, maxRedirects)
	}
	https, http := req.URL.Scheme == "https", req.URL.Scheme == "http"
	if !https && (!http || via[0].URL.Scheme == "https") {
		return fmt.Errorf("%w: from %s to %s", errRedirect, via[0].URL.Scheme, req.URL.Scheme)
	}
	return nil
}

// download is the transfer of one file.
type download struct {
	http  *HTTP
	url   *url.URL
	file  *os.File
	size  int64  // bytes written so far
	total int64  // bytes of all; -1 if unknown
	same  string // the validator of what was written so far; "" cannot be resumed
}

// temporary is a failed try after which another may succeed.
type temporary struct {
	err   error
	after time.Duration // the server asks to wait; 0 if it does not
}

func (t *temporary) Error() string { return t.err.Error() }
func (t *temporary) Unwrap() error { return t.err }

func (d *download) run(ctx context.Context) error {
	wait := orElse(d.http.Backoff, defaultBackoff)
	limit, first := orElse(d.http.Tries, defaultTries), wait
	for failed := 0; ; {
		before := d.size
		err := d.try(ctx)
		var again *temporary
		if err == nil || !errors.As(err, &again) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if failed++; d.size > before {
			failed, wait = 1, first
		}
		if failed >= limit {
			return fmt.Errorf("fetch %s: %w after %d tries: %w", redact(d.url.String()), berth.ErrUnavailable, failed, again.err)
		}
		pause := max(wait/2+rand.N(wait), min(again.after, maxRetryAfter)) //nolint:gosec // spreads tries, keeps no secret
		d.http.log().Info("a download broke off and will be resumed",
			"url", redact(d.url.String()), "bytes", d.size, "wait", pause, "err", again.err)
		if d.http.Retrying != nil {
			d.http.Retrying(fmt.Sprintf("%s: try %d of %d: %v", redact(d.url.String()), failed, limit, again.err))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		wait = min(wait*2, first*maxBackoff)
	}
}

func orElse[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

// errStalled is why a try is ended when nothing comes.
var errStalled = errors.New("the server sent nothing for too long")

// try asks for what is missing and writes what comes.
func (d *download) try(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := orElse(d.http.Stall, defaultStall)
	watch := time.AfterFunc(stall, func() { cancel(errStalled) })
	defer watch.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url.String(), nil)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", redact(d.url.String()), berth.ErrInvalid)
	}
	// The bytes are wanted as they are, and ranges count those.
	req.Header.Set("Accept-Encoding", "identity")
	if d.size > 0 && d.same != "" {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.size))
		req.Header.Set("If-Range", d.same)
	}
	resp, err := d.http.client().Do(req)
	if err != nil {
		return d.failed(ctx, err)
	}
	defer resp.Body.Close()
	if err := d.begin(resp); err != nil {
		return err
	}
	return d.body(ctx, resp.Body, func() { watch.Reset(stall) })
}

// begin makes the file ready for what the answer holds.
func (d *download) begin(resp *http.Response) error {
	if resp.StatusCode == http.StatusPartialContent {
		from, total, ok := contentRange(resp.Header.Get("Content-Range"))
		etag := resp.Header.Get("ETag")
		changed := etag != "" && strings.HasPrefix(d.same, `"`) && etag != d.same // some servers do not heed If-Range
		if !ok || from != d.size || changed || d.total >= 0 && total >= 0 && total != d.total {
			// Not what was asked for: once more from the start.
			return &temporary{err: errors.Join(errors.New("the server answered with another range"), d.restart())}
		}
		d.total = max(d.total, total)
		return nil
	}
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return &temporary{err: errors.Join(errors.New("the file has changed meanwhile"), d.restart())}
		}
		return d.refused(resp)
	}
	if err := d.restart(); err != nil {
		return err
	}
	d.total = resp.ContentLength
	d.same = resp.Header.Get("ETag")
	if strings.HasPrefix(d.same, "W/") || d.same == "" {
		d.same = resp.Header.Get("Last-Modified")
	}
	return nil
}

// contentRange reads "bytes FROM-TO/TOTAL"; total is -1 where it is "*".
func contentRange(s string) (from, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	first, rest, ok2 := strings.Cut(s, "-")
	_, last, ok3 := strings.Cut(rest, "/")
	from, err := strconv.ParseInt(first, 10, 64)
	if !ok || !ok2 || !ok3 || err != nil {
		return 0, 0, false
	}
	if last == "*" {
		return from, -1, true
	}
	total, err = strconv.ParseInt(last, 10, 64)
	return from, total, err == nil && total >= 0
}

func (d *download) restart() error {
	d.size, d.total, d.same = 0, -1, ""
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	_, err := d.file.Seek(0, io.SeekStart)
	return err
}

// body writes what comes; alive is called as it does.
func (d *download) body(ctx context.Context, body io.Reader, alive func()) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			alive()
			w, werr := d.file.WriteAt(buf[:n], d.size)
			d.size += int64(w)
			if werr != nil {
				return werr
			}
		}
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF):
			return d.failed(ctx, err)
		case d.total >= 0 && d.size < d.total:
			return &temporary{err: fmt.Errorf("the connection ended after %d of %d bytes", d.size, d.total)}
		case d.total >= 0 && d.size > d.total:
			return &temporary{err: errors.Join(errors.New("more came than was announced"), d.restart())}
		default:
			return nil
		}
	}
}

// failed says what a broken transfer means.
func (d *download) failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStalled) {
		return cause
	}
	var certificate *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &certificate) || errors.As(err, &unknown) {
		return fmt.Errorf("fetch %s: %w: %w", redact(d.url.String()), berth.ErrDenied, bare(err))
	}
	if errors.Is(err, errRedirect) {
		return fmt.Errorf("fetch %s: %w: %w", redact(d.url.String()), berth.ErrInvalid, bare(err))
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return fmt.Errorf("fetch %s: %w: there is no host %s", redact(d.url.String()), berth.ErrUnavailable, d.url.Hostname())
	}
	if cause := context.Cause(ctx); cause != nil {
		return &temporary{err: cause}
	}
	return &temporary{err: bare(err)}
}

// bare is an error of the client without the URL, which may hold secrets.
func bare(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// refused says what an answer other than success means.
func (d *download) refused(resp *http.Response) error {
	status := "the server answered " + resp.Status
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		return fmt.Errorf("fetch %s: %w: %s", redact(d.url.String()), berth.ErrNotFound, status)
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusProxyAuthRequired || code == http.StatusUnavailableForLegalReasons:
		return fmt.Errorf("fetch %s: %w: %s", redact(d.url.String()), berth.ErrDenied, status)
	case code == http.StatusRequestTimeout || code == http.StatusTooEarly || code == http.StatusTooManyRequests || code >= 500:
		return &temporary{err: errors.New(status), after: retryAfter(resp.Header.Get("Retry-After"))}
	default:
		return fmt.Errorf("fetch %s: %w: %s", redact(d.url.String()), berth.ErrInvalid, status)
	}
}

func retryAfter(s string) time.Duration {
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return min(time.Duration(min(n, 1<<20))*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(s); err == nil {
		return time.Until(at)
	}
	return 0
}

// redact takes what may be secret out of a URL: the user, the query (signed URLs) and the fragment.
func redact(location string) string {
	u, err := url.Parse(location)
	if err != nil {
		return schemeOf(location) + "://…"
	}
	out := u.Scheme + "://" + u.Host + u.EscapedPath()
	if u.RawQuery != "" {
		out += "?…"
	}
	return out
}
