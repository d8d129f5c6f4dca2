package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// between passes a daemon's API on, and notes when each call was made and answered.
type between struct {
	server *http.Server
	mu     sync.Mutex
	landed sync.Cond // a call's answer is through
	flying int       // calls whose answers are not through yet, but for streams
	calls  []call
}

type call struct {
	what       string
	begin, end time.Time
}

// newBetween listens on a socket for the daemon at another.
func newBetween(ctx context.Context, sock, daemon string) (*between, error) {
	b := &between{}
	b.landed.L = &b.mu
	l, err := new(net.ListenConfig).Listen(ctx, "unix", sock)
	if err != nil {
		return nil, err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", daemon)
			},
			MaxIdleConnsPerHost: 16,
		},
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode == http.StatusSwitchingProtocols { // the stream itself lasts as long as the container
				b.note(r.Request, r.Request.Context().Value(began{}).(time.Time))
			}
			return nil
		},
	}
	b.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		r = r.WithContext(context.WithValue(r.Context(), began{}, begin))
		if what := path.Base(r.URL.Path); what == "attach" || what == "events" && !r.URL.Query().Has("until") {
			proxy.ServeHTTP(w, r)
			return
		}
		b.fly(1)
		defer b.fly(-1)
		proxy.ServeHTTP(w, r)
		b.note(r, begin)
	})}
	go func() { _ = b.server.Serve(l) }() // ends with the server
	return b, nil
}

// began is the key of when a call was made.
type began struct{}

func (b *between) note(r *http.Request, begin time.Time) {
	c := call{r.Method + " " + r.URL.Path[strings.Index(r.URL.Path[1:], "/")+1:], begin, time.Now()}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, c)
}

// take is what was called since it was last asked, when nothing is.
func (b *between) take() []call {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.flying > 0 {
		b.landed.Wait()
	}
	all := b.calls
	b.calls = nil
	return all
}

func (b *between) fly(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flying += n
	b.landed.Broadcast()
}

func (b *between) close() { _ = b.server.Close() }

// needed reports whether no client can do without a call to run a container.
func (c call) needed() bool {
	switch method, what, _ := strings.Cut(c.what, " "); method {
	case http.MethodDelete:
		return strings.HasPrefix(what, "/containers/")
	case http.MethodPost:
		return slices.Contains([]string{"create", "attach", "start", "wait"}, path.Base(what))
	}
	return false
}

// daemons is how long the daemon was busy with what is needed. From its start until the daemon says that it has ended a
// container runs.
func daemons(all []call) (sum time.Duration) {
	slices.SortFunc(all, func(a, b call) int { return a.begin.Compare(b.begin) })
	var upTo time.Time
	for _, c := range all {
		if !c.needed() || !c.end.After(upTo) {
			continue
		}
		if c.begin.After(upTo) && path.Base(c.what) != "wait" {
			upTo = c.begin
		}
		sum += c.end.Sub(upTo)
		upTo = c.end
	}
	return sum
}
