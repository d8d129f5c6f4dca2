// Command summary reads the output of `go test -json`, prints what failed and what was skipped and why, which tests
// took longest, which wrote very much and which failed, and closes with one line: N passed, N failed, N skipped. It exits with 1 if anything failed.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

const (
	slowest = 15      // so many tests are told of
	much    = 4 << 20 // bytes that a test writes: go test keeps them all in memory, several times
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type key struct{ pkg, test string }

type summary struct {
	out                     io.Writer
	passed, failed, skipped int
	output                  map[key][]string
	written                 map[key]int  // bytes
	parents                 map[key]bool // tests that have subtests are counted by those
	ended                   []event      // tests that passed or failed
}

func main() {
	before := flag.Int("failed", 0, "`number` of checks that failed before the tests")
	flag.Parse()
	s := &summary{out: os.Stdout, failed: *before, output: map[key][]string{}, written: map[key]int{}, parents: map[key]bool{}}
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stdout, err)
		s.failed++
	}
	s.close()
	fmt.Fprintf(os.Stdout, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	if s.failed > 0 || s.passed == 0 {
		os.Exit(1)
	}
}

func (s *summary) read(r io.Reader) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			fmt.Fprintln(s.out, sc.Text()) // of the toolchain itself
			continue
		}
		s.add(e)
	}
	return sc.Err()
}

func (s *summary) add(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "run":
		if i := strings.LastIndexByte(e.Test, '/'); i > 0 {
			s.parents[key{e.Package, e.Test[:i]}] = true
		}
	case "output", "build-output":
		if e.Action == "build-output" {
			fmt.Fprint(s.out, e.Output)
			return
		}
		s.output[k] = append(s.output[k], e.Output)
		s.written[k] += len(e.Output)
	case "pass", "fail", "skip":
		s.end(k, e)
	}
}

func (s *summary) end(k key, e event) {
	defer delete(s.output, k)
	if k.test == "" {
		switch e.Action {
		case "fail":
			s.print(k)
			fmt.Fprintf(s.out, "FAIL %s (%.1f s)\n", k.pkg, e.Elapsed)
			s.failed++ // the package itself, be it that no test of it could say so
		case "pass":
			fmt.Fprintf(s.out, "ok   %s (%.1f s)\n", k.pkg, e.Elapsed)
		}
		return
	}
	if e.Action != "skip" {
		s.ended = append(s.ended, e)
	}
	switch e.Action {
	case "fail":
		s.print(k)
		if !s.parents[k] {
			s.failed++
		}
	case "skip":
		s.print(k)
		s.skipped++
	case "pass":
		if !s.parents[k] {
			s.passed++
		}
	}
}

// close tells which tests took longest, which wrote very much and which failed, by themselves and not by their subtests.
func (s *summary) close() {
	own := slices.DeleteFunc(s.ended, func(e event) bool { return s.parents[key{e.Package, e.Test}] })
	slices.SortStableFunc(own, func(a, b event) int { return cmp.Compare(b.Elapsed, a.Elapsed) })
	for _, e := range own[:min(slowest, len(own))] {
		fmt.Fprintf(s.out, "%6.1f s  %s %s\n", e.Elapsed, e.Package, e.Test)
	}
	for k, n := range s.written {
		if n > much {
			fmt.Fprintf(s.out, "%4d MiB written by %s %s\n", n>>20, k.pkg, k.test)
		}
	}
	for _, e := range own {
		if e.Action == "fail" {
			fmt.Fprintf(s.out, "failed: %s %s\n", e.Package, e.Test)
		}
	}
}

func (s *summary) print(k key) {
	for _, line := range s.output[k] {
		fmt.Fprint(s.out, line)
	}
}
