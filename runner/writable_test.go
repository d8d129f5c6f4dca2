package runner

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

// What a step puts in the way of where berth writes, reads or mounts on this host is not followed.
func TestLinksOfTheTask(t *testing.T) {
	mount := func(source, target string) berth.Mount { return berth.Mount{Source: source, Target: target} }
	for _, c := range []struct {
		name     string
		commands []string
		mounts   [][]berth.Mount // of each step; sources are below the testbed's directory
		stdout   string          // of the first step
		outputs  []berth.Output  // likewise
		detail   string          // of the result
		warning  string
		runs     int
	}{
		{
			name:     "at the place of an output",
			commands: []string{`ln -s ../secret/s $R/work/out; echo evil >$R/o/f`},
			mounts:   [][]berth.Mount{{mount("w", "/work")}},
			outputs:  []berth.Output{{URL: "w/out", Path: "/o/f"}},
			detail:   "w/out is a symbolic link in", runs: 1,
		},
		{
			name:     "above it",
			commands: []string{`ln -s ../secret $R/work/d; echo evil >$R/o/s`},
			mounts:   [][]berth.Mount{{mount("w", "/work")}},
			outputs:  []berth.Output{{URL: "w/d/", Path: "/o/s"}},
			detail:   "w/d is a symbolic link in", runs: 1,
		},
		{
			name:     "at the place of a directory, by a link of the user's",
			commands: []string{`ln -s ../secret $R/work/d; echo evil >$R/o/s`},
			mounts:   [][]berth.Mount{{mount("alias", "/work")}},
			outputs:  []berth.Output{{URL: "alias/d", Path: "/o", Type: berth.Directory}},
			detail:   "w/d is a symbolic link in", runs: 1,
		},
		{
			name:     "in a mount that is read-only, but can be mounted anew",
			commands: []string{`ln -s ../secret/s $R/work/out; echo evil >$R/o/f`},
			mounts:   [][]berth.Mount{{{Source: "w", Target: "/work", ReadOnly: true}}},
			outputs:  []berth.Output{{URL: "w/out", Path: "/o/f"}},
			detail:   "w/out is a symbolic link in", runs: 1,
		},
		{
			name:     "where another mount lies that standard output goes to",
			commands: []string{`rm -r $R/work/sub; ln -s ../secret $R/work/sub; echo evil`},
			mounts:   [][]berth.Mount{{mount("w", "/work"), mount("w/sub", "/sub")}},
			stdout:   "/sub/s",
			detail:   "step 1: file /sub/s of stdout was not saved: ", runs: 1,
		},
		{
			name:     "where another mount lies that is read",
			commands: []string{`rm -r $R/work/sub; ln -s ../secret $R/work/sub`},
			mounts:   [][]berth.Mount{{mount("w", "/work"), mount("w/sub", "/sub")}},
			outputs:  []berth.Output{{URL: "got", Path: "/sub/s"}},
			detail:   "what a step puts in its place is not followed", runs: 1,
		},
		{
			name:     "where the next step has a mount",
			commands: []string{`rm -r $R/work/sub; ln -s ../secret $R/work/sub`, `echo evil >$R/sub/s`},
			mounts:   [][]berth.Mount{{mount("w", "/work")}, {mount("w/sub", "/sub")}},
			detail:   "what a step puts in its place is not followed", runs: 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTestbed(t)
			must(0, os.MkdirAll(filepath.Join(b.dir, "w/sub"), 0o755))
			must(0, os.Mkdir(filepath.Join(b.dir, "secret"), 0o755))
			must(0, os.WriteFile(filepath.Join(b.dir, "secret/s"), []byte("old"), 0o600))
			must(0, os.Symlink("w", filepath.Join(b.dir, "alias")))
			task := berth.Task{Outputs: c.outputs}
			for i, command := range c.commands {
				s := sh(command)
				for _, m := range c.mounts[i] {
					if m.ReadOnly {
						s.CapAdd = []string{"sys_admin"}
					}
					m.Source = filepath.Join(b.dir, m.Source)
					s.Mounts = append(s.Mounts, m)
				}
				task.Steps = append(task.Steps, s)
			}
			task.Steps[0].Stdout = c.stdout
			got, err := b.Run(timeout(t), b.at(task), Hooks{})
			if err != nil {
				t.Fatal(err)
			}
			if c.detail != "" && (got.State != berth.SystemError || !strings.Contains(got.Detail, c.detail)) {
				t.Errorf("%s: %s", got.State, got.Detail)
			}
			if w := b.warnings(t, "t"); c.warning != "" && !slices.ContainsFunc(w, func(s string) bool { return strings.HasPrefix(s, c.warning) }) {
				t.Errorf("warnings %q", w)
			}
			if s := string(must(os.ReadFile(filepath.Join(b.dir, "secret/s")))); s != "old" || len(must(os.ReadDir(filepath.Join(b.dir, "secret")))) != 1 || exists(filepath.Join(b.dir, "got")) {
				t.Errorf("the secret is %q, or was read", s)
			}
			if len(b.runs()) != c.runs {
				t.Errorf("commands ran: %q", b.runs())
			}
		})
	}
}

// An input that is gone by the end of the task costs it nothing but what is read there.
func TestInputThatGoes(t *testing.T) {
	for _, c := range []struct {
		name, command string
		also          []berth.Output
		state         berth.State
	}{
		{"and is no output", "", nil, berth.Complete},
		{"and is an output", "", []berth.Output{{URL: "also", Path: "/in/f"}}, berth.SystemError},
		{"and has a link in its place", "; ln -s secret in", []berth.Output{{URL: "also", Path: "/in/f"}}, berth.SystemError},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTestbed(t)
			for _, name := range []string{"in", "secret"} {
				must(0, os.WriteFile(filepath.Join(b.dir, name), []byte(name+"\n"), 0o600))
			}
			got, err := b.Run(timeout(t), b.at(berth.Task{
				Steps:   []berth.Step{sh("echo new >$R/o/f; cd " + b.dir + "; rm in" + c.command)},
				Inputs:  []berth.Input{{URL: filepath.Join(b.dir, "in"), Path: "/in/f"}},
				Outputs: append(c.also, berth.Output{URL: "got", Path: "/o/f"}),
			}), Hooks{})
			if err != nil || got.State != c.state || exists(filepath.Join(b.dir, "also")) {
				t.Errorf("%+v, %v", got, err)
			}
			if text, err := os.ReadFile(filepath.Join(b.dir, "got")); c.state == berth.Complete && string(text) != "new\n" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
}

// Links that are there before a task runs lead where its user meant them to.
func TestLinksOfTheUser(t *testing.T) {
	b := newTestbed(t)
	must(0, os.MkdirAll(filepath.Join(b.dir, "w"), 0o755))
	must(0, os.Mkdir(filepath.Join(b.dir, "far"), 0o755))
	must(0, os.Symlink("../far", filepath.Join(b.dir, "w/data")))
	mounts := []berth.Mount{{Source: filepath.Join(b.dir, "w"), Target: "/work"}, {Source: filepath.Join(b.dir, "w/data"), Target: "/data"}}
	task := berth.Task{
		Steps:   []berth.Step{{Image: "i", Command: []string{`echo 1 >$R/data/x`}, Mounts: mounts}, {Image: "i", Command: []string{`cat $R/data/x >$R/data/y`}, Mounts: mounts}},
		Outputs: []berth.Output{{URL: "got", Path: "/data/y"}},
	}
	got, err := b.Run(timeout(t), b.at(task), Hooks{})
	if err != nil || got.State != berth.Complete || string(must(os.ReadFile(filepath.Join(b.dir, "far/y")))) != "1\n" || string(must(os.ReadFile(filepath.Join(b.dir, "got")))) != "1\n" {
		t.Errorf("%+v, %v", got, err)
	}
	rec := must(b.Record(t.Context(), "t"))
	if diff := cmp.Diff([]string{filepath.Join(b.dir, "w"), filepath.Join(b.dir, "far")}, rec.Writable()); diff != "" {
		t.Error(diff)
	}
}

func TestLoose(t *testing.T) {
	for _, c := range []struct {
		step berth.Step
		want bool
	}{
		{berth.Step{}, false},
		{berth.Step{CapAdd: []string{"NET_ADMIN"}}, false},
		{berth.Step{Seccomp: "unconfined"}, true},
		{berth.Step{Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW"}`}, true},
		{berth.Step{CapAdd: []string{"cap_sys_resource"}}, true},
		{berth.Step{CapAdd: []string{"ALL"}}, true},
	} {
		if got := sandboxOf(&berth.Task{Steps: []berth.Step{{}, c.step}}, &layout{}).Loose; got != c.want {
			t.Errorf("%+v: %v", c.step, got)
		}
	}
}
