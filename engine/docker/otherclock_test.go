package docker_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

var (
	stampRE = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)
	unixRE  = regexp.MustCompile(`"(time|timeNano|Created)":(\d+)`)
)

// clockProxy passes on the API of a daemon that is as on another machine, as if the clock there were ahead of this one's:
// all times in answers are, and those in questions are taken to be. It answers its address.
func clockProxy(t *testing.T, sock string, ahead time.Duration) string {
	t.Helper()
	shift := func(raw []byte) []byte {
		raw = stampRE.ReplaceAllFunc(raw, func(s []byte) []byte {
			at, err := time.Parse(time.RFC3339Nano, string(s))
			if err != nil || at.Year() <= 1 {
				return s
			}
			layout := time.RFC3339Nano
			if len(s) == len("2006-01-02T15:04:05.000000000Z") {
				layout = "2006-01-02T15:04:05.000000000Z07:00" // in logs, all are as long
			}
			return []byte(at.Add(ahead).Format(layout))
		})
		return unixRE.ReplaceAllFunc(raw, func(s []byte) []byte {
			name, value, _ := strings.Cut(string(s), ":")
			n, _ := strconv.ParseInt(value, 10, 64)
			if name == `"timeNano"` {
				return fmt.Appendf(nil, "%s:%d", name, n+int64(ahead))
			}
			return fmt.Appendf(nil, "%s:%d", name, n+int64(ahead/time.Second))
		})
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker"
			q := r.Out.URL.Query()
			for _, name := range []string{"since", "until"} {
				if at, ok := strings.CutPrefix(q.Get(name), ""); ok && at != "" && at != "0" {
					q.Set(name, unshift(at, ahead))
				}
			}
			r.Out.URL.RawQuery = q.Encode()
		},
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(sock, "unix://"))
		}},
		FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0), // of calls that are given up
		ModifyResponse: func(r *http.Response) error {
			if at, err := http.ParseTime(r.Header.Get("Date")); err == nil {
				r.Header.Set("Date", at.Add(ahead).Format(http.TimeFormat))
			}
			path := r.Request.URL.Path
			switch {
			case strings.HasSuffix(path, "/logs"):
				r.Body = &shiftedLog{ReadCloser: r.Body, shift: shift}
			case strings.HasSuffix(path, "/events"), strings.HasSuffix(path, "/stats"):
				pr, pw := io.Pipe()
				body := r.Body
				go func() { _ = pw.CloseWithError(lines(pw, body, shift)) }() // ends with the answer
				r.Body = struct {
					io.Reader
					io.Closer
				}{pr, closers{pr, body}}
			case r.Header.Get("Content-Type") == "application/json" && !strings.HasSuffix(path, "/wait"):
				raw, err := io.ReadAll(r.Body)
				_ = r.Body.Close()
				if err != nil {
					return err
				}
				raw = shift(raw)
				r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
				r.Header.Set("Content-Length", strconv.Itoa(len(raw)))
			}
			return nil
		},
	}
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // ends with the server
	t.Cleanup(func() { _ = server.Close() })
	return (&url.URL{Scheme: "tcp", Host: l.Addr().String()}).String()
}

// unshift is a time of a question, "1700000000.000000123", by the daemon's clock.
func unshift(s string, ahead time.Duration) string {
	sec, nano, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return s
	}
	return strings.TrimSuffix(fmt.Sprintf("%d.%s", n-int64(ahead/time.Second), nano), ".")
}

type closers []io.Closer

func (cs closers) Close() error {
	for _, c := range cs {
		_ = c.Close()
	}
	return nil
}

// lines passes lines on, changed.
func lines(w io.Writer, r io.Reader, change func([]byte) []byte) error {
	var rest []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		rest = append(rest, buf[:n]...)
		if i := bytes.LastIndexByte(rest, '\n'); i >= 0 {
			if _, err := w.Write(change(rest[:i+1])); err != nil {
				return err
			}
			rest = append([]byte(nil), rest[i+1:]...)
		}
		if err != nil {
			_, _ = w.Write(change(rest))
			return err
		}
	}
}

// shiftedLog is a log in frames, whose messages begin with their times.
type shiftedLog struct {
	io.ReadCloser
	shift func([]byte) []byte
	frame []byte
}

func (s *shiftedLog) Read(p []byte) (int, error) {
	if len(s.frame) == 0 {
		head := make([]byte, 8)
		if _, err := io.ReadFull(s.ReadCloser, head); err != nil {
			return 0, err
		}
		text := make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(s.ReadCloser, text); err != nil {
			return 0, err
		}
		const stamp = len("2006-01-02T15:04:05.000000000Z")
		s.frame = append(append(head, s.shift(text[:min(stamp, len(text))])...), text[min(stamp, len(text)):]...)
	}
	n := copy(p, s.frame)
	s.frame = s.frame[n:]
	return n, nil
}

// TestMachinesClock: on a daemon on another machine whose clock is another, times are told by this one's, limits of time hold,
// ends are what they are, and logs are whole and found by time.
func TestMachinesClock(t *testing.T) {
	t.Parallel()
	remoteConfig(t)
	for _, ahead := range []time.Duration{90 * time.Minute, -90 * time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			t.Parallel()
			host := clockProxy(t, sharedRemote.daemon.Host(), ahead)
			dir := t.TempDir()
			e, img := newEngine(t, docker.Config{Host: host, Dir: dir})
			if away, err := e.Elsewhere(t.Context()); away == "" || err != nil {
				t.Fatalf("elsewhere %q, %v", away, err)
			}
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close(t.Context()) }()
			start := func(script string, timeout time.Duration) berth.Container {
				t.Helper()
				c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"sh", "-c", script}, Timeout: timeout})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			const close = 2 * time.Second
			began := time.Now()
			c := start("echo one; sleep 3; echo two; exit 7", 0)
			exit := wait(t, c)
			if exit.Reason != berth.Exited || exit.Code != 7 || exit.Started.Before(began.Add(-close)) || exit.Ended.After(time.Now().Add(close)) || exit.Ended.Sub(exit.Started) < 2*time.Second {
				t.Errorf("from %v to %v: exit %+v", began, time.Now(), exit)
			}
			for since, want := range map[time.Time]string{began.Add(-time.Second): "one\ntwo\n", exit.Started.Add(2 * time.Second): "two\n", time.Now().Add(time.Minute): ""} {
				r, err := c.(berth.LogReader).Logs(t.Context(), berth.LogOptions{Since: since})
				if err != nil {
					t.Fatal(err)
				}
				if raw, err := io.ReadAll(r); string(raw) != want || err != nil {
					t.Errorf("since %v: %q, want %q, %v", since, raw, want, err)
				}
				_ = r.Close()
			}
			exit = wait(t, start("sleep 1000", 3*time.Second))
			if took := exit.Ended.Sub(exit.Started); exit.Reason != berth.TimedOut || took < 2*time.Second || took > time.Minute {
				t.Errorf("a limit of 3 s: after %v: %+v", took, exit)
			}
			c = start("sleep 1000", 0)
			if err := c.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if exit := wait(t, c); exit.Reason != berth.Stopped {
				t.Errorf("stopped: %+v", exit)
			}
			c = start("sleep 1000", 0)
			if err := post(t, sharedRemote.daemon.Host(), "/containers/berth-"+e.Owner()+"-"+s.ID()+"-"+c.ID()+"/kill?signal=KILL"); err != nil {
				t.Fatal(err)
			}
			if exit := wait(t, c); exit.Reason != berth.Signaled || exit.Signal != 9 {
				t.Errorf("killed by another: %+v", exit)
			}
			c = start("i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.02; done", 0)
			until(t, "it writes", func() bool { return strings.Contains(logs(t, c, false), "line 20\n") })
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			again, _ := newEngine(t, docker.Config{Host: host, Dir: dir})
			if s, err = again.Attach(t.Context(), s.ID()); err != nil {
				t.Fatal(err)
			}
			if c, err = s.Container(t.Context(), c.ID()); err != nil {
				t.Fatal(err)
			}
			if exit := wait(t, c); !exit.OK() || exit.Detail != "" {
				t.Errorf("followed again: %+v", exit)
			}
			whole := ""
			for i := range 200 {
				whole += fmt.Sprintln("line", i)
			}
			if got := logs(t, c, false); got != whole {
				t.Errorf("followed again: %d bytes, which are not the %d that were written", len(got), len(whole))
			}
		})
	}
}
