package cgroup

import (
	"os"
	"strings"
	"testing"
)

// recycled is a group of the pool that keeps its files open, after a first container.
func recycled(t *testing.T, p *Pool, l Limits) *Group {
	t.Helper()
	g := get(t, p, l)
	if !put(t, p, g, true) {
		t.Fatal("it was not parked")
	}
	if again := get(t, p, l); again != g {
		t.Fatal("another was given out")
	}
	return g
}

func needsV1(t *testing.T, h *Host) {
	t.Helper()
	if h.Version() == V2 {
		t.Skip("needs v1 hierarchies: on v2 nothing is used again")
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// v1 keeps the list of processes that it made for an open file for a second.
func TestFilesThatStayOpenTellWhatIs(t *testing.T) {
	h, p := newPool(t)
	needsV1(t, h)
	g := recycled(t, p, Limits{PIDs: 50, Memory: 64 * mib})
	for range 3 {
		if busy, err := g.Populated(); err != nil || busy {
			t.Fatalf("nothing is in it: %v %v", busy, err)
		}
		c := command(t.Context(), g, "sleep")
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
		if busy, err := g.Populated(); err != nil || !busy {
			t.Errorf("a process is in it: %v %v", busy, err)
		}
		for _, dir := range g.dirs() {
			if b, err := g.procs(dir); err != nil || len(b) == 0 {
				t.Errorf("%s has a process: %q %v", dir, b, err)
			}
		}
		if err := g.deserted(); err == nil {
			t.Error("with a process in it, it is as a new one")
		}
		if u, err := g.Usage(); err != nil || *u.PIDs == 0 || *u.CPUSeconds == 0 || *u.Memory < 100<<10 {
			t.Errorf("usage of a process: %s %v", show(u), err)
		}
		_ = c.Process.Kill()
		_ = c.Wait()
		for _, dir := range g.dirs() {
			if b, err := g.procs(dir); err != nil || len(b) > 0 {
				t.Errorf("%s has no process any more: %q %v", dir, b, err)
			}
		}
	}
	p.Put(g, true)
}

func TestFilesThatStayOpenAreFew(t *testing.T) {
	h, p := newPool(t)
	needsV1(t, h)
	p.size = 3 * maxHolders
	before := openFiles(t)
	var groups []*Group
	for range maxHolders + 5 {
		groups = append(groups, get(t, p, Limits{}))
	}
	made := openFiles(t)
	for _, g := range groups {
		if !put(t, p, g, true) {
			t.Fatal("it was not parked")
		}
	}
	holding := 0
	for _, g := range groups {
		if g.held.fds != nil {
			holding++
		}
	}
	if more := openFiles(t) - made; holding != maxHolders || more > 25*maxHolders {
		t.Errorf("%d groups keep %d files open, want %d", holding, more, maxHolders)
	}
	if groups[0].held.fds != nil || groups[len(groups)-1].held.fds == nil {
		t.Error("it is not those that were recycled last")
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open after all groups were removed, %d before they were made", after, before)
	}
}

// Whoever removes a cgroup and makes it again must not be answered from the old one, whose files are still open.
func TestFilesThatStayOpenOfARemovedGroup(t *testing.T) {
	h, p := newPool(t)
	needsV1(t, h)
	g := recycled(t, p, Limits{})
	dir := g.v1[memory]
	if n, err := g.readInt(dir + "/memory.failcnt"); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := g.OOMKills(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("kills in a removed cgroup: %v", err)
	}
	if err := g.deserted(); err == nil {
		t.Error("a removed one is as a new one")
	}
	if err := os.MkdirAll(dir+"/x", 0o755); err != nil {
		t.Fatal(err)
	}
	if n, err := g.OOMKills(); err != nil || n != 0 {
		t.Errorf("kills in one that was made again: %d %v", n, err)
	}
	if err := g.deserted(); err == nil {
		t.Error("one with a child is as a new one")
	}
	p.Put(g, true)
}
