package logfile_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/logfile"
)

func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal("needs root to mount a small file system:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// A log that fills its disk keeps its end, which says how it all went; who follows it and holds it gets every byte.
func TestFullDiskKeepsTheTail(t *testing.T) {
	dir := smallDisk(t, "256k")
	w, err := logfile.Create(dir, "stdout", logfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := w.Follow(true, 0)
	defer f.Close()
	r, pw := pipe(t)
	done := pump(t, w, r)
	want := append(bytes.Repeat([]byte("0123456789abcde\n"), 1<<16), "the last line\n"...)
	go func() { _, _ = pw.Write(want); _ = pw.Close() }()
	rd, err := logfile.Open(dir, "stdout", logfile.From{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(follow(t, rd, w, f))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("a follower that holds got %d bytes of %d, %v (skipped %d)", len(got), len(want), err, rd.Skipped())
	}
	if err := <-done; !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "were dropped to make room for its last") {
		t.Errorf("Pump = %v; want one that says what was dropped", err)
	}
	kept, rd := readAll(t, dir, logfile.From{})
	if !strings.HasSuffix(string(want), kept) || len(kept) < 32<<10 || rd.Skipped() != int64(len(want)-len(kept)) {
		t.Errorf("kept %d bytes, skipped %d; want the tail, unchanged", len(kept), rd.Skipped())
	}
}

// What a command says of a disk that somebody else has filled is kept, and where the log has nothing to free: there is
// a reserve.
func TestReserve(t *testing.T) {
	dir := smallDisk(t, "32m")
	reserve := filepath.Join(dir, "reserve")
	w, err := logfile.Create(dir, "stderr", logfile.Options{Reserve: reserve})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(reserve); err != nil || st.Size() != 1<<20 {
		t.Fatalf("reserve: %v, %v", st, err)
	}
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 1<<20); err == nil; {
		_, err = fill.Write(b)
	}
	_ = fill.Close()
	r, pw := pipe(t)
	done := pump(t, w, r)
	_, _ = pw.WriteString("no space left on device\n")
	_ = pw.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "stderr"))
	if string(text) != "no space left on device\n" || err != nil {
		t.Errorf("stderr: %q, %v", text, err)
	}
	// The next log finds it gone, and makes it again once there is room.
	if err := os.Remove(filepath.Join(dir, "fill")); err != nil {
		t.Fatal(err)
	}
	if w, err = logfile.Create(dir, "other", logfile.Options{Reserve: reserve}); err != nil {
		t.Fatal(err)
	}
	w.Abandon()
	if st, err := os.Stat(reserve); err != nil || st.Size() != 1<<20 {
		t.Errorf("reserve: %v, %v", st, err)
	}
}
