package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestReadWhole(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	for _, size := range []int{0, 1, 1023, 1024, 1025, 9000} {
		want := bytes.Repeat([]byte("x"), size)
		if err := os.WriteFile(file, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := read(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %d, %v", size, len(got), err)
		}
	}
}

// A list of processes is made line by line, and put out page by page.
func TestReadWholeListOfProcesses(t *testing.T) {
	h := host(t)
	for _, n := range []int{100, 300, 900} { // less than a buffer, more than it, more than a page
		g := make1(t, h, Spec{Path: strconv.Itoa(n)})
		c := shell(t.Context(), g, "i=1; while [ $i -lt "+strconv.Itoa(n)+" ]; do sleep 1000 & i=$((i+1)); done; echo ready; wait")
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		if procs, err := g.Procs(); err != nil || len(procs) != n {
			t.Errorf("%d of %d processes: %v", len(procs), n, err)
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		_ = c.Wait()
	}
}
