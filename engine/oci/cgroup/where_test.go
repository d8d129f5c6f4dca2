package cgroup

import "testing"

// TestPathV1: of a hierarchy that a group joined, nothing is said but where it is there.
func TestPathV1(t *testing.T) {
	tree := func(mount, root string, controllers ...string) *tree {
		return &tree{hierarchy: hierarchy{mount: mount, root: root, controllers: controllers}, base: "/berth"}
	}
	h := &Host{}
	h.v1[cpu] = tree("/c/cpu,cpuacct", "/", "cpu", "cpuacct")
	h.v1[memory] = tree("/c/memory", "/docker/1", "memory")
	h.v1[pids] = tree("/c/pids", "/", "pids", "strange")
	h.v1[blkio] = tree("/c/blkio", "/", "blkio")
	h.others = append(h.others, tree("/c/freezer", "/", "freezer"))
	g := &Group{host: h}
	g.v1[cpu], g.v1[memory], g.v1[pids] = "/c/cpu,cpuacct/berth/x", "/c/memory/berth/x", "/c/pids/berth/x"
	for controllers, want := range map[string]struct {
		where string
		known bool
	}{
		"cpu,cpuacct":  {"/berth/x", true},
		"cpuacct,cpu":  {"/berth/x", true},
		"cpu":          {"", false},
		"memory":       {"", false}, // a part of the hierarchy is mounted
		"pids":         {"", false},
		"blkio":        {"", true}, // not joined
		"freezer":      {"", true},
		"name=systemd": {"", true},
	} {
		if where, known := g.PathV1(controllers); where != want.where || known != want.known {
			t.Errorf("%s: %q, %t; want %+v", controllers, where, known, want)
		}
	}
}
