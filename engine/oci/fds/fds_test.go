package fds

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestAside(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	w := Aside(p[1])
	if flags, err := unix.FcntlInt(uintptr(w), unix.F_GETFD, 0); err != nil || w < First || flags != unix.FD_CLOEXEC {
		t.Errorf("descriptor %d, flags %d, %v", w, flags, err)
	}
	if err := unix.Close(w); err != nil {
		t.Error(err)
	}
	// That was the only one of the pipe's end.
	if n, err := unix.Read(p[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read: %d, %v", n, err)
	}
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: First, Max: old.Max}, nil); err != nil {
		t.Fatal(err)
	}
	stays := Aside(p[0])
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil); err != nil {
		t.Fatal(err)
	}
	if stays != p[0] {
		t.Errorf("%d became %d over the limit", p[0], stays)
	}
	if err := unix.Close(stays); err != nil {
		t.Error(err)
	}
}
