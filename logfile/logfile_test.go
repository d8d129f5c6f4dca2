package logfile_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/logfile"
	"golang.org/x/sys/unix"
)

// pipe returns a pipe as the monitor makes it: a read end that the poller knows, and a blocking write end.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(p[0]), "r"), os.NewFile(uintptr(p[1]), "w")
	t.Cleanup(func() { _ = w.Close() })
	return r, w
}

func pump(t *testing.T, w *logfile.Writer, r *os.File) chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- w.Pump(r) }()
	return done
}

func readAll(t *testing.T, dir string, from logfile.From) (string, *logfile.Reader) {
	t.Helper()
	r, err := logfile.Open(dir, "stdout", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	var b bytes.Buffer
	if _, err := r.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String(), r
}

func TestPumpExact(t *testing.T) {
	for _, withCopy := range []bool{false, true} {
		t.Run(fmt.Sprint("copy ", withCopy), func(t *testing.T) {
			dir := t.TempDir()
			opts := logfile.Options{}
			if withCopy {
				f, err := os.Create(filepath.Join(dir, "copy"))
				if err != nil {
					t.Fatal(err)
				}
				opts.Copy = f
			}
			w, err := logfile.Create(dir, "stdout", opts)
			if err != nil {
				t.Fatal(err)
			}
			r, pw := pipe(t)
			done := pump(t, w, r)
			rnd := rand.New(rand.NewPCG(1, 2))
			var want bytes.Buffer
			for want.Len() < 8<<20 {
				b := make([]byte, rnd.IntN(200_000))
				for i := range b {
					b[i] = byte(rnd.Uint32())
				}
				want.Write(b)
				if _, err := pw.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			_ = pw.Close()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got, _ := readAll(t, dir, logfile.From{}); got != want.String() {
				t.Errorf("the log has %d bytes of %d, or others", len(got), want.Len())
			}
			if got, _ := readAll(t, dir, logfile.From{Offset: 1_000_001}); got != want.String()[1_000_001:] {
				t.Error("reading from an offset gives other bytes")
			}
			if withCopy {
				if got, err := os.ReadFile(filepath.Join(dir, "copy")); err != nil || !bytes.Equal(got, want.Bytes()) {
					t.Errorf("the copy has %d bytes of %d, or others (%v)", len(got), want.Len(), err)
				}
			}
		})
	}
}

func TestLimitFreesTheHead(t *testing.T) {
	dir := t.TempDir()
	const limit = 1 << 20
	w, err := logfile.Create(dir, "stdout", logfile.Options{Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	r, pw := pipe(t)
	done := pump(t, w, r)
	var all bytes.Buffer
	for i := range 400_000 {
		fmt.Fprintf(&all, "line %d\n", i)
	}
	if _, err := pw.Write(all.Bytes()); err != nil {
		t.Fatal(err)
	}
	_ = pw.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got, rd := readAll(t, dir, logfile.From{})
	if !strings.HasSuffix(all.String(), got) || len(got) < limit {
		t.Errorf("kept %d bytes; at least %d of the tail must be kept, unchanged", len(got), limit)
	}
	if want := int64(all.Len() - len(got)); rd.Skipped() != want {
		t.Errorf("Skipped() = %d, want %d", rd.Skipped(), want)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "stdout"), &st); err != nil {
		t.Fatal(err)
	}
	if onDisk := st.Blocks * 512; onDisk > 2*limit {
		t.Errorf("%d bytes on disk under a limit of %d", onDisk, limit)
	}
	if tail, _ := readAll(t, dir, logfile.From{Tail: 2}); tail != "line 399998\nline 399999\n" {
		t.Errorf("tail = %q", tail)
	}
}

// follow reads a log to its end, telling its writer how far it has come.
func follow(t *testing.T, rd *logfile.Reader, w *logfile.Writer, f *logfile.Follower) io.Reader {
	return rd.Follow(t.Context(), func(ctx context.Context, have int64) (bool, error) {
		f.Ack(have)
		select {
		case <-f.C():
		case <-ctx.Done():
			return false, ctx.Err()
		}
		_, _, ended := w.State()
		return ended, nil
	})
}

func TestHoldingFollowerLosesNothing(t *testing.T) {
	dir := t.TempDir()
	w, err := logfile.Create(dir, "stdout", logfile.Options{Limit: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	f := w.Follow(true, 0)
	defer f.Close()
	r, pw := pipe(t)
	done := pump(t, w, r)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { _, _ = pw.Write(want); _ = pw.Close() }()
	rd, err := logfile.Open(dir, "stdout", logfile.From{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(follow(t, rd, w, f))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("a follower that holds got %d bytes of %d (skipped %d)", len(got), len(want), rd.Skipped())
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestEase: once the container has ended, a follower that does not read holds nobody up, and yet loses nothing.
func TestEase(t *testing.T) {
	dir := t.TempDir()
	const limit = 64 << 10
	w, err := logfile.Create(dir, "stdout", logfile.Options{Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	f := w.Follow(true, 0)
	defer f.Close()
	w.Ease()() // undone, it is as if it had not been
	r, pw := pipe(t)
	done := pump(t, w, r)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { _, _ = pw.Write(want); _ = pw.Close() }()
	for end := int64(0); end < limit; end, _, _ = w.State() {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-done:
		t.Fatalf("nothing holds the log: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	w.Ease()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, rd := readAll(t, dir, logfile.From{}); got != string(want) {
		t.Errorf("%d bytes of %d are there (skipped %d)", len(got), len(want), rd.Skipped())
	}
}

func TestFullDiskDoesNotBlockTheContainer(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal("needs root to mount a small file system:", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	w, err := logfile.Create(dir, "stdout", logfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, pw := pipe(t)
	done := pump(t, w, r)
	if _, err := pw.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	_ = pw.Close()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Pump = %v; want one that says from which byte on there was no space left", err)
	}
}

func TestTimes(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := make(chan time.Time, 3)
	w, err := logfile.Create(dir, "stdout", logfile.Options{Now: func() time.Time { return <-clock }})
	if err != nil {
		t.Fatal(err)
	}
	r, pw := pipe(t)
	f := w.Follow(false, 0)
	defer f.Close()
	done := pump(t, w, r)
	for i, s := range []string{"one\ntwo", " and more\n", "three\n"} {
		clock <- now.Add(time.Duration(i) * time.Second)
		if _, err := io.WriteString(pw, s); err != nil {
			t.Fatal(err)
		}
		for end, _, _ := w.State(); end < []int64{7, 17, 23}[i]; end, _, _ = w.State() {
			<-f.C()
		}
	}
	_ = pw.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	rd, err := logfile.Open(dir, "stdout", logfile.From{})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if _, err := rd.WriteTo(&logfile.Timestamps{W: &out, R: rd}); err != nil {
		t.Fatal(err)
	}
	want := "2026-01-02T03:04:05.000000000Z one\n2026-01-02T03:04:05.000000000Z two and more\n2026-01-02T03:04:07.000000000Z three\n"
	if out.String() != want {
		t.Errorf("with timestamps:\n%swant:\n%s", out.String(), want)
	}
	if got, _ := readAll(t, dir, logfile.From{Since: now.Add(time.Second)}); got != " and more\nthree\n" {
		t.Errorf("since the second write: %q", got)
	}
}

func TestTail(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 1, "c"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\n\n\n", 2, "\n\n"},
		{"one", 5, "one"},
		{"", 3, ""},
		{"a\nb\n", -1, ""},
		{strings.Repeat("x", 200_000) + "\nlast\n", 1, "last\n"},
	} {
		at, err := logfile.Tail(strings.NewReader(c.in), 0, int64(len(c.in)), c.n)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.in[at:]; got != c.want {
			t.Errorf("tail %d of %.20q = %.20q, want %.20q", c.n, c.in, got, c.want)
		}
	}
}

func TestResume(t *testing.T) {
	dir := t.TempDir()
	write := func(s string) {
		t.Helper()
		w, err := logfile.Resume(dir, "stdout", logfile.Options{Limit: 8192})
		if err != nil {
			t.Fatal(err)
		}
		r, pw := pipe(t)
		done := pump(t, w, r)
		if _, err := io.WriteString(pw, s); err != nil {
			t.Fatal(err)
		}
		_ = pw.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	write("one\n") // makes it
	time.Sleep(50 * time.Millisecond)
	between := time.Now()
	write("two\n")
	if got, _ := readAll(t, dir, logfile.From{}); got != "one\ntwo\n" {
		t.Errorf("the log reads %q", got)
	}
	if got, _ := readAll(t, dir, logfile.From{Since: between}); got != "two\n" {
		t.Errorf("since it was resumed it reads %q", got)
	}
	write(strings.Repeat("x", 20_000))
	write("last\n")
	got, r := readAll(t, dir, logfile.From{})
	if !strings.HasSuffix(got, "xlast\n") || r.Skipped() == 0 || int64(len(got))+r.Skipped() != 20_013 {
		t.Errorf("beyond its limit it reads %d bytes and skips %d", len(got), r.Skipped())
	}
	if tail, _ := readAll(t, dir, logfile.From{Offset: 20_008}); tail != "last\n" {
		t.Errorf("at the last offset it reads %q", tail)
	}
}
