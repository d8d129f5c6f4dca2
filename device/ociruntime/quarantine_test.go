package ociruntime

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// A GPU that any berth of the engine's user has noted a fault of is not lent, wherever that note lies: for the host, or in the
// data directory, as where nobody could write elsewhere.
func TestRuntimeQuarantineNotes(t *testing.T) {
	for name, tt := range map[string]struct {
		note func(host, data string) string
		by   string // what names the data directory
	}{
		"of the host":                   {func(host, _ string) string { return filepath.Join(host, "run/berth/quarantine") }, ""},
		"in the data directory":         {func(_, data string) string { return filepath.Join(data, "gpu/quarantine") }, "configuration"},
		"in that of the environment":    {func(_, data string) string { return filepath.Join(data, "gpu/quarantine") }, "environment"},
		"in both, the environment's on": {func(_, data string) string { return filepath.Join(data, "gpu/quarantine") }, "both"},
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			var options []string
			if tt.by == "configuration" || tt.by == "both" {
				options = append(options, fmt.Sprintf("data-dir = %q", data))
			}
			switch tt.by {
			case "environment":
				t.Setenv("BERTH_DATA_DIR", data)
			case "both":
				t.Setenv("BERTH_DATA_DIR", "/nowhere")
			}
			p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc", options...)
			bad, good := p.host.NVIDIA[0], p.host.NVIDIA[1]
			q := device.Quarantine{Dirs: []string{tt.note(p.host.Root, data)}}
			if err := q.Put(device.Fault{UUID: bad.UUID, Reason: "it burns", Time: time.Now()}); err != nil {
				t.Fatal(err)
			}
			run := func(uuid string) (string, error) {
				return p.runtime("run", "--bundle", p.bundle("echo ran", "NVIDIA_VISIBLE_DEVICES="+uuid), p.id())
			}
			if out, err := run(bad.UUID); err == nil || !strings.Contains(out, "it is not lent any more: it burns") || !strings.Contains(out, "berth gpu release "+bad.UUID) {
				t.Errorf("%v: %s", err, out)
			}
			if got := p.holder(bad); got != "" {
				t.Errorf("it is held by %q", got)
			}
			if out, err := run(good.UUID); err != nil || !strings.Contains(out, "ran\n") {
				t.Errorf("another: %v: %s", err, out)
			}
			if err := q.Release(bad.UUID); err != nil {
				t.Fatal(err)
			}
			if out, err := run(bad.UUID); err != nil || !strings.Contains(out, "ran\n") {
				t.Errorf("released: %v: %s", err, out)
			}
		})
	}
}

func TestDataDirs(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg       Config
		env       []string
		uid       int
		namespace bool
		want      []string
	}{
		"root":                       {env: []string{"HOME=/root"}, want: []string{"/var/lib/berth"}},
		"root of a namespace":        {env: []string{"HOME=/home/u"}, namespace: true, want: []string{"/var/lib/berth", "/home/u/.local/share/berth"}},
		"a user":                     {uid: 1000, env: []string{"HOME=/home/u"}, want: []string{"/home/u/.local/share/berth"}},
		"a user's XDG_DATA_HOME":     {uid: 1000, env: []string{"HOME=/home/u", "XDG_DATA_HOME=/data"}, want: []string{"/data/berth"}},
		"a user without a home":      {uid: 1000},
		"named by the environment":   {env: []string{"BERTH_DATA_DIR=/b"}, want: []string{"/b"}},
		"named by the configuration": {cfg: Config{DataDir: "/c"}, uid: 1000, env: []string{"BERTH_DATA_DIR=/b"}, want: []string{"/c"}},
		"a relative path":            {env: []string{"BERTH_DATA_DIR=b"}, want: []string{"/var/lib/berth"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, dataDirs(tt.cfg, tt.env, tt.uid, tt.namespace)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
