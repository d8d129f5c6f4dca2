package docker

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestFramesAreGoneOnWith: wherever the reading of a multiplexed stream is stopped, another goes on from there.
func TestFramesAreGoneOnWith(t *testing.T) {
	in := frame(1, "out\n") + frame(2, "errors\n") + frame(1, "") + frame(3, "no room") + frame(2, "e") + frame(1, strings.Repeat("more", 10))
	var want, wantErrs bytes.Buffer
	_ = demux(strings.NewReader(in), &want, &wantErrs)
	for at := range len(in) + 1 {
		var out, errs bytes.Buffer
		f := &frames{r: io.MultiReader(strings.NewReader(in[:at]), stopped{})}
		none := func(io.Writer) error { return nil }
		if err := f.demux(&out, &errs, none); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("stopped after %d bytes: %v", at, err)
		}
		rest := string(f.unfinished()) + in[at:]
		_ = (&frames{r: strings.NewReader(rest)}).demux(&out, &errs, none)
		if out.String() != want.String() || errs.String() != wantErrs.String() {
			t.Errorf("stopped after %d bytes: %q, %q; want %q, %q", at, &out, &errs, &want, &wantErrs)
		}
	}
}

// stopped is a connection whose deadline is over.
type stopped struct{}

func (stopped) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestHandedInVain: what nobody takes of the keeper is closed, as the daemon has the container wait; so is what comes twice.
func TestHandedInVain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{e: &Engine{cfg: Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}}, handed: map[string]*handed{}, tended: map[string]*tended{}}
		l := &life{sandbox: "t", step: "s"}
		word, err := json.Marshal(handMessage{Sandbox: "t", Step: "s", Unread: []byte("x")})
		if err != nil {
			t.Fatal(err)
		}
		hand := func() (net.Conn, *os.File) {
			ours, theirs := net.Pipe()
			lock, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			k.take(t.Context(), string(word), &handed{conn: theirs, lock: lock})
			return ours, lock
		}
		closed := func(c net.Conn, lock *os.File) bool {
			_ = c.SetReadDeadline(time.Now())
			_, err := c.Read(make([]byte, 1))
			_, serr := lock.Stat()
			if hung := errors.Is(err, io.EOF); hung != errors.Is(serr, os.ErrClosed) {
				t.Errorf("connection: %v; lock: %v", err, serr)
			}
			return errors.Is(err, io.EOF)
		}
		first, firstLock := hand()
		again, againLock := hand()
		if !closed(first, firstLock) || closed(again, againLock) {
			t.Error("that of two which came first is not closed, or the other one is")
		}
		lock, err := k.lock(t.Context(), l)
		if err != nil || lock != againLock || l.handed == nil || string(l.handed.unread) != "x" || k.handedOf(l) != nil {
			t.Fatalf("handed over: %+v with %v, %v, or twice", l.handed, lock, err)
		}
		vain, vainLock := hand()
		time.Sleep(takeMax + time.Second)
		if !closed(vain, vainLock) || closed(again, againLock) || k.handedOf(l) != nil {
			t.Error("what nobody took is there, or what was taken is closed")
		}
		l.setHanded(nil)
		_ = lock.Close()
		if !closed(again, againLock) {
			t.Error("what was taken and not read is open")
		}
	})
}
