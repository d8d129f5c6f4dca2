package staging_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

// A link that the user names stays, and what it leads to is written. What a pattern matches follows none: the task
// chose its name.
func TestCollectThroughLinks(t *testing.T) {
	tests := []struct{ name, there, path, url, want, err string }{
		{"to a file", "real=old out->real", "/v/f", "out", "out->real real=new", ""},
		{"to a file elsewhere, by several", "a/b/ a/real=old m->a/b/../real out->m", "/v/f", "out", "a/b/ a/real=new m->a/b/../real out->m", ""},
		{"by a directory that is a link", "x/y/ x/real=old d->x/y out->d/../real", "/v/f", "out", "d->x/y out->d/../real x/real=new x/y/", ""},
		{"to what is not there", "a/ out->a/new", "/v/f", "out", "a/new=new out->a/new", ""},
		{"into no directory", "out->a/new", "/v/f", "out", "out->a/new", "it is a symbolic link to a/new, whose directory cannot be opened (no such file or directory)"},
		{"in a circle", "m->out out->m", "/v/f", "out", "m->out out->m", "its symbolic links lead in a circle"},
		{"to a device", "out->/dev/null", "/v/f", "out", "out->/dev/null", "it is a device"},
		{"to an open file", "out->/proc/self/fd/1", "/v/f", "out", "out->/proc/self/fd/1", "it leads to what a process has open, and to no file"},
		{"of a pattern", "real=old out/f->../real", "/v/*", "out", "out/f=new real=old", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dest := plant(t, t.TempDir(), strings.Fields(tt.there)...)
			v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "f=new"))})
			o := berth.Output{Path: tt.path, URL: dest + "/" + tt.url}
			_, err := staging.Collect(t.Context(), v, []berth.Output{o}, staging.CollectOptions{})
			_, foreseen := staging.CheckTarget(o, nil)
			for _, err := range []error{err, foreseen} {
				if tt.err == "" && err == nil {
					continue
				}
				if want := "output /v/f: cannot write " + o.URL + ": " + tt.err; fmt.Sprint(err) != want || !errors.Is(err, berth.ErrConflict) {
					t.Errorf("err %v, want %s", err, want)
				}
			}
			if got := show(t, dest); got != tt.want {
				t.Errorf("wrote %s\n want %s", got, tt.want)
			}
		})
	}
}

// Who may write to a directory of root's outputs has no file of root's written by a link.
func TestTargetOfAnotherUser(t *testing.T) {
	needRoot(t, "gives a link away")
	dest := plant(t, t.TempDir(), "secret=1", "out->secret")
	if err := os.Lchown(dest+"/out", 1234, 1234); err != nil {
		t.Fatal(err)
	}
	to, err := staging.Target(dest+"/out", nil)
	if want := dest + "/out is a symbolic link of another user (1234), which is not followed; name the file itself"; to != "" || fmt.Sprint(err) != want {
		t.Errorf("%s, %v", to, err)
	}
}

// Where others may write they can move a link of this user's to an output's place; not where the sticky bit is set.
func TestTargetWhereOthersWrite(t *testing.T) {
	dest := plant(t, t.TempDir(), "secret=1", "out->secret")
	for mode, want := range map[os.FileMode]string{
		0o777:                 dest + "/out is a symbolic link in " + dest + ", a directory that others may write to, and not followed; name the file itself",
		0o777 | os.ModeSticky: "<nil>",
		0o755:                 "<nil>",
	} {
		if err := os.Chmod(dest, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := staging.Target(dest+"/out", nil); fmt.Sprint(err) != want {
			t.Errorf("%v: %v", mode, err)
		}
	}
}

// A directory that an output goes to, whatever it is, is looked at before the run.
func TestCheckTargetNotWritable(t *testing.T) {
	needRoot(t, "mounts a read-only file system")
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, 0) }()
	for _, url := range []string{"", "/"} {
		_, err := staging.CheckTarget(berth.Output{Path: "/o", URL: dir + url}, nil)
		if want := "output /o: cannot write " + dir + ": the directory is not writable (read-only file system)"; fmt.Sprint(err) != want {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestCheckTarget(t *testing.T) {
	dest := plant(t, t.TempDir(), "dir/x=1", "file=1", "pipe|", "gone->nope")
	tests := []struct {
		name string
		o    berth.Output
		err  string
	}{
		{"file", berth.Output{Path: "/o", URL: "file", Type: berth.File}, ""},
		{"not there", berth.Output{Path: "/o", URL: "a/b/c"}, ""},
		{"directory, of unknown type", berth.Output{Path: "/o", URL: "dir"}, ""},
		{"into a directory", berth.Output{Path: "/o/x", URL: "dir/"}, ""},
		{"file over a directory", berth.Output{Path: "/o", URL: "dir", Type: berth.File}, "it is a directory"},
		{"directory over a file", berth.Output{Path: "/o", URL: "file", Type: berth.Directory}, "not a directory"},
		{"pattern into a file", berth.Output{Path: "/o/*", URL: "file"}, "not a directory"},
		{"over a pipe", berth.Output{Path: "/o", URL: "pipe"}, "it is a named pipe"},
		{"directory over a dangling link", berth.Output{Path: "/o", URL: "gone", Type: berth.Directory}, "it is a symbolic link that leads nowhere"},
	}
	for _, tt := range tests {
		tt.o.URL = dest + "/" + tt.o.URL
		want := "<nil>"
		if tt.err != "" {
			want = "output " + tt.o.Path + ": cannot write " + filepath.Join(tt.o.URL) + ": " + tt.err
		}
		if _, err := staging.CheckTarget(tt.o, nil); fmt.Sprint(err) != want {
			t.Errorf("%s: %v, want %s", tt.name, err, want)
		}
	}
	if err := staging.CheckMake("/proc"); err == nil {
		t.Error("something can be made in /proc")
	}
	if err := staging.CheckMake(dest); err != nil || show(t, dest) != "dir/x=1 file=1 gone->nope pipe|" {
		t.Errorf("%s, %v", show(t, dest), err)
	}
}
