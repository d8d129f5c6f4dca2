package docker_test

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/client"
)

// TestHeldVolume: a volume that the daemon takes for mounted, as one of before 23 does after a restart, is told of by its name with
// the remedy by who closes the sandbox and by who removes leftovers; all else is gone, and it goes later.
func TestHeldVolume(t *testing.T) {
	t.Parallel()
	var holds atomic.Bool
	h := newHanger(t, daemon(t).Host())
	h.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodDelete || !strings.Contains(r.URL.Path, "/volumes/") || !holds.Load() {
			return false
		}
		http.Error(w, `{"message":"remove it: volume has active mounts"}`, http.StatusConflict)
		return true
	}
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	dir := t.TempDir()
	e, img := newEngine(t, docker.Config{Host: h.host, Dir: dir})
	for _, row := range []struct {
		name  string
		later func(context.Context, string) error
	}{
		{"purged", func(ctx context.Context, id string) error {
			was, err := e.Purge(ctx, id)
			if err == nil && !was {
				t.Error("nothing was removed")
			}
			return err
		}},
		{"swept", func(ctx context.Context, _ string) error { return e.Sweep(ctx) }},
	} {
		id := berth.NewID()
		s, err := e.Open(t.Context(), berth.SandboxSpec{ID: id, Volumes: []berth.Volume{{Path: "/a", CopyUp: true}, {Path: "/b", CopyUp: true}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := start(t.Context(), s, img); err != nil {
			t.Fatal(err)
		}
		have := named(t, api, "berth-"+e.Owner()+"-"+id+"-v")
		have = slices.DeleteFunc(have, func(n string) bool { return strings.HasPrefix(n, "container ") }) // the step's ID may begin so
		if len(have) != 2 {
			t.Fatalf("%s: the daemon has %q", row.name, have)
		}
		told := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, berth.ErrConflict) {
				t.Errorf("%s: %s: %v", row.name, what, err)
				return
			}
			for _, v := range have {
				_, v, _ = strings.Cut(v, " ")
				if !strings.Contains(err.Error(), "-v"+v+": ") || !strings.Contains(err.Error(), "restart the daemon") {
					t.Errorf("%s: %s, without volume %s or the remedy: %v", row.name, what, v, err)
				}
			}
		}
		holds.Store(true)
		told("close", s.Close(t.Context()))
		if _, err := e.Attach(t.Context(), id); !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("%s: the sandbox is left: %v", row.name, err)
		}
		_, err = e.Purge(t.Context(), id)
		told("purge", err)
		holds.Store(false)
		if err := row.later(t.Context(), id); err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		if left := named(t, api, "berth-"+e.Owner()+"-"+id); len(left) > 0 {
			t.Errorf("%s: left are %q", row.name, left)
		}
		if notes, _ := filepath.Glob(dir + "/held-volumes/*"); len(notes) > 0 {
			t.Errorf("%s: noted are %q", row.name, notes)
		}
	}
}
