package staging_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

func TestFetchLocal(t *testing.T) {
	host := plant(t, t.TempDir(), "f=12345", "with space%=x", "d/g=1", "link->f", "gone->nope", "p|", "loop->loop")
	tests := []struct {
		name string
		in   berth.Input
		want staging.Staged
		err  string
		kind error
	}{
		{name: "path", in: berth.Input{URL: "HOST/f", Path: "/in"}, want: staging.Staged{Input: berth.Input{URL: "HOST/f", Path: "/in", Type: berth.File}, HostPath: "HOST/f", Size: 5}},
		{name: "URL", in: berth.Input{URL: "file://HOST/with%20space%25", Path: "/in"}, want: staging.Staged{Input: berth.Input{URL: "file://HOST/with%20space%25", Path: "/in", Type: berth.File}, HostPath: "HOST/with space%", Size: 1}},
		{name: "URL of this host", in: berth.Input{URL: "file://localhostHOST/f", Path: "/in"}, want: staging.Staged{Input: berth.Input{URL: "file://localhostHOST/f", Path: "/in", Type: berth.File}, HostPath: "HOST/f", Size: 5}},
		{name: "a # is no fragment", in: berth.Input{URL: "file:HOST/f#1", Path: "/in"}, err: "cannot mount input `HOST/f#1` as it does not exist", kind: berth.ErrNotFound},
		{name: "directory", in: berth.Input{URL: "HOST/d", Path: "/in", Type: berth.Directory}, want: staging.Staged{Input: berth.Input{URL: "HOST/d", Path: "/in", Type: berth.Directory}, HostPath: "HOST/d"}},
		{name: "directory, found out", in: berth.Input{URL: "HOST/d/", Path: "/in"}, want: staging.Staged{Input: berth.Input{URL: "HOST/d/", Path: "/in", Type: berth.Directory}, HostPath: "HOST/d"}},
		{name: "link", in: berth.Input{URL: "HOST/link", Path: "/in"}, want: staging.Staged{Input: berth.Input{URL: "HOST/link", Path: "/in", Type: berth.File}, HostPath: "HOST/f", Size: 5}},
		{name: "content wins over a URL", in: berth.Input{URL: "HOST/nope", Content: new("hi"), Path: "/in"}, want: staging.Staged{Input: berth.Input{URL: "HOST/nope", Content: new("hi"), Path: "/in", Type: berth.File}, HostPath: "DIR/input-0", Size: 2}},
		{name: "empty content", in: berth.Input{Content: new(""), Path: "/in"}, want: staging.Staged{Input: berth.Input{Content: new(""), Path: "/in", Type: berth.File}, HostPath: "DIR/input-0"}},
		{name: "missing", in: berth.Input{URL: "HOST/nope", Path: "/in"}, err: "cannot mount input `HOST/nope` as it does not exist", kind: berth.ErrNotFound},
		{name: "below a file", in: berth.Input{URL: "HOST/f/x", Path: "/in"}, err: "cannot mount input `HOST/f/x` as it does not exist", kind: berth.ErrNotFound},
		{name: "dangling link", in: berth.Input{URL: "HOST/gone", Path: "/in"}, err: "cannot mount input `HOST/gone` as it does not exist", kind: berth.ErrNotFound},
		{name: "pipe", in: berth.Input{URL: "HOST/p", Path: "/in"}, err: "cannot mount input `HOST/p`: invalid: it is neither a file nor a directory", kind: berth.ErrInvalid},
		{name: "file, not directory", in: berth.Input{URL: "HOST/f", Path: "/in", Type: berth.Directory}, err: "cannot mount input `HOST/f`: invalid: its type is FILE, and DIRECTORY was declared", kind: berth.ErrInvalid},
		{name: "directory, not file", in: berth.Input{URL: "HOST/d", Path: "/in", Type: berth.File}, err: "cannot mount input `HOST/d`: invalid: its type is DIRECTORY, and FILE was declared", kind: berth.ErrInvalid},
		{name: "unknown type", in: berth.Input{URL: "HOST/d", Path: "/in", Type: "LINK"}, err: `input /in: invalid: type "LINK" is neither FILE nor DIRECTORY`, kind: berth.ErrInvalid},
		{name: "relative", in: berth.Input{URL: "f", Path: "/in"}, err: `input /in: "f": invalid: neither a URL nor an absolute path`, kind: berth.ErrInvalid},
		{name: "of another host", in: berth.Input{URL: "file://elsewhere/f", Path: "/in"}, err: `input /in: file://elsewhere/f: unsupported: it names the host "elsewhere"; file URLs are of this host: file:///path`, kind: berth.ErrUnsupported},
		{name: "bad escape", in: berth.Input{URL: "file:///f%zz", Path: "/in"}, err: `input /in: file:///f%zz: invalid: invalid URL escape "%zz" (write % itself as %25)`, kind: berth.ErrInvalid},
		{name: "NUL", in: berth.Input{URL: "file:///f%00", Path: "/in"}, err: `input /in: "file:///f%00": invalid: a path has no NUL`, kind: berth.ErrInvalid},
		{name: "scheme", in: berth.Input{URL: "s3://b/k", Path: "/in"}, err: "input /in: unsupported: scheme s3; inputs come from file://, http://, https://, absolute paths and inline content", kind: berth.ErrUnsupported},
		{name: "nothing", in: berth.Input{Path: "/in"}, err: "input /in: invalid: it has neither a URL nor content", kind: berth.ErrInvalid},
		{name: "content of a directory", in: berth.Input{Content: new("x"), Path: "/in", Type: berth.Directory}, err: "input /in: invalid: content makes a file, and no directory", kind: berth.ErrInvalid},
		{name: "relative container path", in: berth.Input{Content: new("x"), Path: "in"}, err: `input: container path "in": invalid: it is not absolute`, kind: berth.ErrInvalid},
		{name: "container path with ..", in: berth.Input{Content: new("x"), Path: "/in/../../x"}, err: `input: container path "/in/../../x": invalid: it has a ".."`, kind: berth.ErrInvalid},
		{name: "container root", in: berth.Input{Content: new("x"), Path: "//"}, err: "input //: invalid: nothing can be mounted at the container's root", kind: berth.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			real := func(s string) string {
				return strings.ReplaceAll(strings.ReplaceAll(s, "HOST", host), "DIR/", dir+"/")
			}
			tt.in.URL, tt.want.URL, tt.want.HostPath = real(tt.in.URL), real(tt.want.URL), real(tt.want.HostPath)
			got, err := staging.Fetch(t.Context(), []berth.Input{tt.in}, dir, staging.FetchOptions{})
			if tt.err != "" {
				if fmt.Sprint(err) != real(tt.err) || !errors.Is(err, tt.kind) || got != nil {
					t.Errorf("%v\nwant %s", err, real(tt.err))
				}
				return
			}
			if err != nil || len(got) != 1 || fmt.Sprintf("%+v", deref(got[0])) != fmt.Sprintf("%+v", deref(tt.want)) {
				t.Errorf("%+v, %v\nwant %+v", got, err, tt.want)
			}
			if in := got[0].Content; in != nil {
				if data, err := os.ReadFile(got[0].HostPath); err != nil || string(data) != *in {
					t.Errorf("content %q, %v", data, err)
				}
			}
		})
	}
}

// deref makes what a Staged points to comparable.
func deref(s staging.Staged) any {
	content := "none"
	if s.Content != nil {
		content = "content " + *s.Content
	}
	s.Content = nil
	return struct {
		staging.Staged
		content string
	}{s, content}
}

func TestFetchSaysAllThatIsWrong(t *testing.T) {
	_, err := staging.Fetch(t.Context(), []berth.Input{{URL: "/nope/1", Path: "/a"}, {URL: "/nope/2", Path: "/b"}}, t.TempDir(), staging.FetchOptions{})
	if want := "cannot mount input `/nope/1` as it does not exist\ncannot mount input `/nope/2` as it does not exist"; fmt.Sprint(err) != want {
		t.Errorf("%v", err)
	}
}

// server answers with data, as the next of its answers says; the last one stays.
func server(t *testing.T, data []byte, answers ...http.HandlerFunc) (url string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(asked.Add(1))
		if n <= len(answers) {
			answers[n-1](w, r)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(srv.Close)
	return srv.URL, asked
}

func breaks(data []byte, after int, etag string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if etag != "" {
			w.Header().Set("ETag", etag)
		}
		_, _ = w.Write(data[:after])
		panic(http.ErrAbortHandler)
	}
}

func answers(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "an error page")
	}
}

func TestFetchHTTP(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	ranged := func(from int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Range"); got != fmt.Sprintf("bytes=%d-", from) || r.Header.Get("If-Range") != `"v1"` {
				t.Errorf("asked for %q if %q", got, r.Header.Get("If-Range"))
			}
			w.Header().Set("ETag", `"v1"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}
	}
	hang := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:100])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	tests := []struct {
		name    string
		answers []http.HandlerFunc
		asked   int64
		err     string
		kind    error
	}{
		{name: "plain", asked: 1},
		{name: "resumed", answers: []http.HandlerFunc{breaks(data, 300_000, `"v1"`), ranged(300_000)}, asked: 2},
		{name: "from the start where nothing tells that it is the same", answers: []http.HandlerFunc{breaks(data, 300_000, "")}, asked: 2},
		{name: "from the start where it has changed", answers: []http.HandlerFunc{breaks(bytes.ToUpper(data), 300_000, `"v0"`)}, asked: 2},
		{name: "the server has no ranges", answers: []http.HandlerFunc{breaks(data, 300_000, `"v1"`), func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }}, asked: 2},
		{name: "another range than was asked for", answers: []http.HandlerFunc{
			breaks(data, 300_000, `"v1"`),
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(data)
			},
		}, asked: 3},
		{name: "the rest of another file", answers: []http.HandlerFunc{
			breaks(bytes.ToUpper(data), 300_000, `"v0"`),
			func(w http.ResponseWriter, _ *http.Request) { // it does not heed If-Range
				w.Header().Set("ETag", `"v1"`)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 300000-%d/%d", len(data)-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(data[300_000:])
			},
		}, asked: 3},
		{name: "more than was announced", answers: []http.HandlerFunc{
			breaks(data, 300_000, `"v1"`),
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("ETag", `"v1"`)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 300000-%d/%d", len(data)-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(append(bytes.Clone(data[300_000:]), "tail"...))
			},
		}, asked: 3},
		{name: "range beyond the end", answers: []http.HandlerFunc{breaks(data, 300_000, `"v1"`), answers(416)}, asked: 3},
		{name: "stalled", answers: []http.HandlerFunc{hang}, asked: 2},
		{name: "busy", answers: []http.HandlerFunc{answers(503), answers(429, "Retry-After", "0"), answers(500)}, asked: 4},
		{name: "always busy", answers: []http.HandlerFunc{answers(503), answers(503), answers(503), answers(503)}, asked: 4, err: "input /in: fetch URL: unavailable after 4 tries: the server answered 503 Service Unavailable", kind: berth.ErrUnavailable},
		{name: "progress counts", answers: []http.HandlerFunc{breaks(data, 1000, `"v1"`), breaks(data[1000:], 0, `"v1"`), breaks(data, 50_000, `"v1"`), answers(503), answers(503)}, asked: 6},
		{name: "not there", answers: []http.HandlerFunc{answers(404)}, asked: 1, err: "input /in: fetch URL: not found: the server answered 404 Not Found", kind: berth.ErrNotFound},
		{name: "forbidden", answers: []http.HandlerFunc{answers(403)}, asked: 1, err: "input /in: fetch URL: denied: the server answered 403 Forbidden", kind: berth.ErrDenied},
		{name: "refused", answers: []http.HandlerFunc{answers(400)}, asked: 1, err: "input /in: fetch URL: invalid: the server answered 400 Bad Request", kind: berth.ErrInvalid},
		{name: "redirected", answers: []http.HandlerFunc{answers(302, "Location", "/else"), answers(307, "Location", "/where")}, asked: 3},
		{name: "redirected to a file", answers: []http.HandlerFunc{answers(302, "Location", "file:///etc/passwd")}, asked: 1, err: "input /in: fetch URL: invalid: redirection not followed: from http to file", kind: berth.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			url, asked := server(t, data, tt.answers...)
			url += "/f.bin?signature=secret"
			dir := t.TempDir()
			var told []string // of one input
			got, err := staging.Fetch(t.Context(), []berth.Input{{URL: url, Path: "/in"}}, dir,
				staging.FetchOptions{Tries: 4, Backoff: time.Millisecond, Stall: 300 * time.Millisecond, Retrying: func(text string) { told = append(told, text) }})
			if n := asked.Load(); n != tt.asked {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
			if want := strings.TrimSuffix(url, "signature=secret") + "…: try 3 of 4: the server answered 503 Service Unavailable"; tt.name == "always busy" && (len(told) != 3 || told[2] != want) {
				t.Errorf("told %q, want last %q", told, want)
			}
			if tt.err != "" {
				msg := strings.ReplaceAll(fmt.Sprint(err), strings.TrimSuffix(url, "signature=secret")+"…", "URL")
				if msg != tt.err || !errors.Is(err, tt.kind) {
					t.Errorf("%s\nwant %s", msg, tt.err)
				}
				if left := show(t, dir); left != "" {
					t.Errorf("left %.100s", left)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if have, err := os.ReadFile(got[0].HostPath); err != nil || !bytes.Equal(have, data) || got[0].Size != int64(len(data)) || got[0].Type != berth.File {
				t.Errorf("%d bytes, %+v, %v", len(have), got, err)
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
				t.Errorf("%v, %v", names, err)
			}
		})
	}
}

func TestFetchHTTPBounds(t *testing.T) {
	around := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Path+"x", http.StatusFound)
	}))
	defer around.Close()
	secure := httptest.NewTLSServer(http.RedirectHandler(around.URL, http.StatusFound))
	defer secure.Close()
	closed := httptest.NewServer(nil)
	closed.Close()
	tests := []struct {
		name, url string
		client    *http.Client
		typ       berth.FileType
		err       string
		kind      error
	}{
		{name: "redirected for ever", url: around.URL + "/", err: "redirection not followed: more than 10 of them", kind: berth.ErrInvalid},
		{name: "from https to http", url: secure.URL, client: secure.Client(), err: "redirection not followed: from https to http", kind: berth.ErrInvalid},
		{name: "certificate", url: secure.URL, err: "certificate", kind: berth.ErrDenied},
		{name: "nobody there", url: closed.URL, err: "connection refused", kind: berth.ErrUnavailable},
		{name: "directory", url: around.URL, typ: berth.Directory, err: "HTTP has no directories", kind: berth.ErrUnsupported},
		{name: "no host", url: "http:///x", err: "not a URL", kind: berth.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := staging.Fetch(t.Context(), []berth.Input{{URL: tt.url, Path: "/in", Type: tt.typ}}, t.TempDir(),
				staging.FetchOptions{Client: tt.client, Tries: 2, Backoff: time.Millisecond})
			if err == nil || !strings.Contains(err.Error(), tt.err) || !errors.Is(err, tt.kind) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %s (%v)", err, tt.err, tt.kind)
			}
		})
	}
}

func TestFetchEnds(t *testing.T) {
	url, _ := server(t, nil, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(berth.ErrCanceled) })
	dir := t.TempDir()
	_, err := staging.Fetch(ctx, []berth.Input{{URL: url, Path: "/in"}}, dir, staging.FetchOptions{})
	if !errors.Is(err, berth.ErrCanceled) {
		t.Errorf("%v", err)
	}
	if left := show(t, dir); left != "" {
		t.Errorf("left %s", left)
	}
}

// A disk that is too small says so, and keeps nothing.
func TestFetchDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	url, _ := server(t, make([]byte, 1<<20))
	for _, in := range []berth.Input{{URL: url, Path: "/in"}, {Content: new(strings.Repeat("x", 1<<20)), Path: "/in"}} {
		_, err := staging.Fetch(t.Context(), []berth.Input{in}, dir, staging.FetchOptions{})
		if !errors.Is(err, berth.ErrExhausted) || fmt.Sprint(err) != "input /in: cannot be written: the disk is full (no space left on device)" {
			t.Errorf("%v", err)
		}
		if left := show(t, dir); left != "" {
			t.Errorf("left %.60s", left)
		}
	}
}

// Sources stand beside each other: the first that takes a scheme fetches it.
func TestFetchSource(t *testing.T) {
	dir := t.TempDir()
	src := memory{"s3://b/k": "from s3"}
	got, err := staging.Fetch(t.Context(), []berth.Input{{URL: "s3://b/k", Path: "/in"}, {URL: "S3://b/gone", Path: "/in2"}}, dir, staging.FetchOptions{Sources: []staging.Source{src}})
	if !errors.Is(err, berth.ErrNotFound) || fmt.Sprint(err) != "input /in2: not found" || got != nil {
		t.Errorf("%v, %v", got, err)
	}
	got, err = staging.Fetch(t.Context(), []berth.Input{{URL: "s3://b/k", Path: "/in"}}, t.TempDir(), staging.FetchOptions{Sources: []staging.Source{src}})
	if err != nil || got[0].Size != 7 {
		t.Errorf("%v, %v", got, err)
	}
	_, err = staging.Fetch(t.Context(), []berth.Input{{URL: "http://h/k", Path: "/in"}}, dir, staging.FetchOptions{Sources: []staging.Source{src}})
	if fmt.Sprint(err) != "input /in: unsupported: scheme http; inputs come from file://, s3://, absolute paths and inline content" {
		t.Error(err)
	}
}

type memory map[string]string

func (memory) Schemes() []string { return []string{"s3"} }

func (m memory) Fetch(_ context.Context, url string, _ berth.FileType, dst string) error {
	data, ok := m[url]
	if !ok {
		return berth.ErrNotFound
	}
	return os.WriteFile(dst, []byte(data), 0o644)
}
