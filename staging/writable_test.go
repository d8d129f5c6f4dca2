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

// What a task can write to holds links that lead where it likes: none there is followed, whoever named it and whatever the
// output is. Links of the user's before it are, and so may a tree be named by one.
func TestCollectWhereTheTaskWrites(t *testing.T) {
	const (
		file, dir, pattern = "/v/f", "/v/d", "/v/*"
		plain              = "d/a=1 f=new"
	)
	link := func(at, tree string) string {
		return at + " is a symbolic link in " + tree + ", which the task can write to, and not followed; name what it is to lead to"
	}
	tests := []struct {
		name, there, path, url string
		want                   string // "" is what was there
		err                    string // with W for the tree and T for what holds it
		unforeseen             bool   // only what is written shows it
	}{
		{name: "file", there: "w/x=1", path: file, url: "w/out", want: "secret/s=old w/out=new w/x=1"},
		{name: "over a file", there: "w/out=1", path: file, url: "w/out", want: "secret/s=old w/out=new"},
		{name: "in new directories", there: "w/", path: file, url: "w/a/b/out", want: "secret/s=old w/a/b/out=new"},
		{name: "into a directory", there: "w/a/", path: file, url: "w/a", want: "secret/s=old w/a/f=new"},
		{name: "directory", there: "w/", path: dir, url: "w/a/out", want: "secret/s=old w/a/out/a=1"},
		{name: "merged directory", there: "w/out/b=2 w/out/a=0", path: dir, url: "w/out", want: "secret/s=old w/out/a=1 w/out/b=2"},
		{name: "into the tree itself", there: "w/b=2", path: dir, url: "w", want: "secret/s=old w/a=1 w/b=2"},
		{name: "pattern", there: "w/", path: pattern, url: "w/out", want: "secret/s=old w/out/d/a=1 w/out/f=new"},

		{name: "link to a file", there: "w/out->../secret/s", path: file, url: "w/out", err: link("W/out", "W")},
		{name: "link to no file", there: "w/out->../secret/new", path: file, url: "w/out", err: link("W/out", "W")},
		{name: "link within", there: "w/x=1 w/out->x", path: file, url: "w/out", err: link("W/out", "W")},
		{name: "link to a directory, for a file", there: "w/out->../secret", path: file, url: "w/out", err: link("W/out", "W")},
		{name: "parent of a file", there: "w/a->../secret", path: file, url: "w/a/s", err: link("W/a", "W")},
		{name: "parent that is to be made", there: "w/a->../secret", path: file, url: "w/a/b/c/s", err: link("W/a", "W")},
		{name: "link to a directory", there: "w/out->../secret", path: dir, url: "w/out", err: link("W/out", "W")},
		{name: "parent of a directory", there: "w/a->../secret", path: dir, url: "w/a/out", err: link("W/a", "W")},
		{name: "in a merged directory", there: "w/out/a->../../secret/s", path: dir, url: "w/out", want: "secret/s=old w/out/a=1"},
		{name: "directory in a merged one", there: "w/v/d->../../secret", path: "/v", url: "w/v", err: "d is a symbolic link there", unforeseen: true},
		{name: "pattern, into a link", there: "w/out->../secret", path: pattern, url: "w/out", err: link("W/out", "W")},
		{name: "pattern, a file", there: "w/out/f->../../secret/s w/out/d/a=0", path: pattern, url: "w/out", want: "secret/s=old w/out/d/a=1 w/out/f=new"},
		{name: "pattern, a directory", there: "w/out/d->../../secret", path: pattern, url: "w/out", want: "secret/s=old w/out/d->../../secret w/out/f=new", err: link("W/out/d", "W"), unforeseen: true},
		{name: "pattern, a parent", there: "w/out/d->../../secret", path: "/v/d/*", url: "w/out/d", err: link("W/out/d", "W")},

		{name: "pipe", there: "w/out|", path: file, url: "w/out", err: "it is a named pipe"},
		{name: "pipe, of a pattern", there: "w/out/f|", path: "/v/f*", url: "w/out", err: "it is a named pipe", unforeseen: true},
		{name: "file for a directory", there: "w/out=1", path: dir, url: "w/out", err: "not a directory", unforeseen: true},

		{name: "user's link into it", there: "w/x=1 my->w/x", path: file, url: "my", want: "my->w/x secret/s=old w/x=new"},
		{name: "user's link to its link", there: "w/x->../secret/s my->w/x", path: file, url: "my", err: link("W/x", "W")},
		{name: "user's link through its link", there: "w/x->../secret my->w/x/s", path: file, url: "my", err: link("W/x", "W")},
		{name: "user's link to a directory in it", there: "w/x/ my->w/x", path: dir, url: "my", want: "my->w/x secret/s=old w/x/a=1"},
		{name: "user's link to its link to a directory", there: "w/x->../secret my->w/x", path: dir, url: "my", err: link("W/x", "W")},
		{name: "below a user's link", there: "w/x->../secret my->w", path: file, url: "my/x/s", err: link("W/x", "W")},
		{name: "user's link with .. in it", there: "w/x/ my->w/x/../y", path: file, url: "my", err: "the way to T/w/x/../y has a .. in W, which the task can write to; name the place itself"},
		{name: "user's link elsewhere", there: "w/ real=1 my->real", path: file, url: "my", want: "my->real real=new secret/s=old w/"},
		{name: "mounted elsewhere too", there: "w/x->../secret alias/", path: file, url: "alias/x", err: "T/alias/x is a symbolic link in W, which the task can write to, and not followed; name what it is to lead to"},
		{name: "part of it mounted elsewhere", there: "w/sub/x->../../secret part/", path: file, url: "part/x/s", err: "T/part/x is a symbolic link in W, which the task can write to, and not followed; name what it is to lead to"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := plant(t, t.TempDir(), append(strings.Fields(tt.there), "secret/s=old")...)
			for at, from := range map[string]string{"alias": "w", "part": "w/sub"} {
				if _, err := os.Stat(filepath.Join(top, at)); err != nil {
					continue
				}
				needRoot(t, "mounts")
				if err := unix.Mount(filepath.Join(top, from), filepath.Join(top, at), "", unix.MS_BIND, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(filepath.Join(top, at), unix.MNT_DETACH) })
			}
			before := show(t, top)
			v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), strings.Fields(plain)...))})
			o := berth.Output{Path: tt.path, URL: top + "/" + tt.url, PathPrefix: "/v"}
			if tt.path == "/v/d/*" {
				o.PathPrefix = tt.path[:len("/v/d")]
			}
			if tt.path == dir {
				o.Type = berth.Directory
			}
			writable := []string{top + "/w"}
			_, foreseen := staging.CheckTarget(o, writable)
			_, err := staging.Collect(t.Context(), v, []berth.Output{o}, staging.CollectOptions{Writable: writable})
			want := strings.NewReplacer("W", top+"/w", "T/", top+"/").Replace(tt.err)
			if tt.err == "" && (err != nil || foreseen != nil) || tt.err != "" && (!strings.HasSuffix(fmt.Sprint(err), want) || !errors.Is(err, berth.ErrConflict)) {
				t.Errorf("%v\nforeseen %v\nwant %s", err, foreseen, want)
			}
			if tt.err != "" && !tt.unforeseen && (!strings.HasSuffix(fmt.Sprint(foreseen), want) || !errors.Is(foreseen, berth.ErrConflict)) {
				t.Errorf("foreseen %v\nwant %s", foreseen, want)
			}
			if tt.want == "" {
				tt.want = before
			}
			if got := show(t, top); got != tt.want {
				t.Errorf("wrote %s\n want %s", got, tt.want)
			}
		})
	}
}

// A hard link at the place is replaced, and what it is a link to stays.
func TestCollectOverAHardLink(t *testing.T) {
	top := plant(t, t.TempDir(), "w/x=1")
	if err := os.Link(top+"/w/x", top+"/w/out"); err != nil {
		t.Fatal(err)
	}
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "f=new"))})
	_, err := staging.Collect(t.Context(), v, []berth.Output{{Path: "/v/f", URL: top + "/w/out"}}, staging.CollectOptions{Writable: []string{top + "/w"}})
	if got := show(t, top); err != nil || got != "w/out=new w/x=1" {
		t.Errorf("%s, %v", got, err)
	}
}

// Directories on the way need not be readable to an ordinary user, nor the one that takes a file which is written by name.
func TestWhereDirectoriesAreForSearch(t *testing.T) {
	needRoot(t, "writes as nobody")
	top := plant(t, t.TempDir(), "w/search/mine/")
	w, mine := top+"/w", top+"/w/search/mine"
	for dir, mode := range map[string]os.FileMode{filepath.Dir(top): 0o711, top: 0o711, w: 0o711, w + "/search": 0o711, mine: 0o755} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "f=new"))})
	o := berth.Output{Path: "/v/f", URL: mine + "/new/out"}
	if err := os.Chown(mine, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	err := as(65534, func() error {
		_, foreseen := staging.CheckTarget(o, []string{w})
		_, err := staging.Collect(t.Context(), v, []berth.Output{o}, staging.CollectOptions{Writable: []string{w}, Sync: true})
		return errors.Join(foreseen, err)
	})
	if got := show(t, top); err != nil || got != "w/search/mine/new/out=new" {
		t.Errorf("%s, %v", got, err)
	}
	if err := os.Chmod(mine, 0o300); err != nil {
		t.Fatal(err)
	}
	for _, writable := range [][]string{nil, {w}} {
		err := as(65534, func() error {
			dir, err := staging.OpenParent(mine+"/r", writable)
			if err != nil {
				return err
			}
			defer dir.Close()
			return os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/r", dir.Fd()), nil, 0o600)
		})
		if err != nil {
			t.Errorf("%q: %v", writable, err)
		}
	}
}

// Mounts of NFS do not say where in their file system they begin, but which directory of which server they are.
func TestParseMount(t *testing.T) {
	for line, want := range map[string][3]string{
		`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`:                   {"98:0", "/mnt1", "/mnt 2"},
		"40 35 0:50 / /home/a rw,relatime shared:300 - nfs4 files.example:/export/home/a rw,vers=4.2":          {"files.example", "/export/home/a", "/home/a"},
		"41 35 0:50 / /home/b rw,relatime shared:301 - nfs4 files.example:/export/home/b rw,vers=4.2":          {"files.example", "/export/home/b", "/home/b"},
		"42 35 0:51 / /srv rw,relatime - nfs [2001:db8::1]:/ rw,vers=3":                                        {"[2001:db8::1]", "/", "/srv"},
		"43 35 0:52 / /home rw,relatime shared:30 - autofs /etc/auto.home rw,fd=6,pgrp=1,timeout=300,indirect": {"0:52", "/", "/home"},
	} {
		device, root, point, ok := staging.ParseMount(line)
		if got := [3]string{device, root, point}; got != want || !ok {
			t.Errorf("%s: %q, %v", line, got, ok)
		}
	}
	if _, _, _, ok := staging.ParseMount("36 35 98:0 /"); ok {
		t.Error("half a line is one")
	}
}

// A tree is known by its inode, where a file system does not tell what is mounted.
func TestTreesByInode(t *testing.T) {
	needRoot(t, "mounts")
	top := plant(t, t.TempDir(), "up/w/x/", "alias/")
	if err := unix.Mount(top+"/up", top+"/alias", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(top+"/alias", unix.MNT_DETACH) })
	w := top + "/up/w"
	for name, want := range map[string]string{"/up/w/x/f": w, "/alias/w/x/f": w, "/alias/f": "", "/f": ""} {
		if got, err := staging.WithinByInode(top+name, []string{w}); got != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
