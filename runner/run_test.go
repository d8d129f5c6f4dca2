package runner

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

func TestRun(t *testing.T) {
	content := "seven"
	for _, c := range []struct {
		name  string
		task  berth.Task
		want  berth.Result // but for times, digests and IDs
		files map[string]string
	}{
		{
			name: "output of two steps over an implied volume",
			task: berth.Task{
				Steps:   []berth.Step{sh(`echo one > $R/out/a`), sh(`cat $R/out/a > $R/out/b; echo two >> $R/out/b`)},
				Outputs: []berth.Output{{URL: "b", Path: "/out/b"}},
			},
			want:  berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{{URL: "b", Path: "/out/b", Size: 8}}},
			files: map[string]string{"b": "one\ntwo\n"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTestbed(t)
			_ = content
			c.task.ID = "t"
			for i := range c.task.Outputs {
				c.task.Outputs[i].URL = filepath.Join(b.dir, c.task.Outputs[i].URL)
			}
			got, err := b.Run(timeout(t), c.task, Hooks{})
			if err != nil {
				t.Fatal(err)
			}
			for i := range got.Outputs {
				got.Outputs[i].URL = filepath.Base(got.Outputs[i].URL)
			}
			if diff := cmp.Diff(c.want, plain(got)); diff != "" {
				t.Error(diff)
			}
			for name, want := range c.files {
				if got := string(must(os.ReadFile(filepath.Join(b.dir, name)))); got != want {
					t.Errorf("%s holds %q, want %q", name, got, want)
				}
			}
			if left := b.left(); left != nil {
				t.Errorf("left over: %q", left)
			}
		})
	}
}

// plain leaves out of a result what is the same for all, or never the same.
func plain(r berth.Result) berth.Result {
	r.ID, r.Engine, r.Runtime, r.Image, r.ImageDigest, r.DiskEnforcement = "", "", "", "", "", ""
	r.Started, r.Ended, r.Steps = nil, nil, nil
	return r
}

var _ = slices.Contains[[]string]
var _ = context.Background
var _ = time.Now
