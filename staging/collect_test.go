package staging_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

// plant makes a tree. An entry is "dir/", "file=content", "link->target", "fifo|"; parents are made.
func plant(t *testing.T, dir string, entries ...string) string {
	t.Helper()
	for _, e := range entries {
		if err := plantOne(dir, e); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func plantOne(dir, e string) error {
	name, content, isFile := strings.Cut(e, "=")
	link, target, isLink := strings.Cut(e, "->")
	pipe, isPipe := strings.CutSuffix(e, "|")
	sock, isSock := strings.CutSuffix(e, "~")
	p := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			panic(err)
		}
		return p
	}
	switch {
	case isLink:
		return os.Symlink(target, p(link))
	case isFile:
		return os.WriteFile(p(name), []byte(content), 0o644)
	case isPipe:
		return unix.Mkfifo(p(pipe), 0o644)
	case isSock:
		return unix.Mknod(p(sock), unix.S_IFSOCK|0o644, 0)
	default:
		return os.MkdirAll(p(e), 0o755)
	}
}

// show lists a tree in the words of plant.
func show(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			if entries, err := os.ReadDir(p); err == nil && len(entries) == 0 {
				out = append(out, rel+"/")
			}
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			out = append(out, rel+"->"+target)
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out = append(out, rel+"="+string(data))
		default:
			out = append(out, rel+"|")
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func volume(t *testing.T, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func view(t *testing.T, mounts ...staging.Mount) *staging.View {
	t.Helper()
	v, err := staging.NewView(mounts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// listed writes outputs as "path size".
func listed(files []berth.OutputFile) string {
	var out []string
	for _, f := range files {
		out = append(out, fmt.Sprintf("%s %d", f.Path, f.Size))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// The container of these tests: a volume at /work in which inputs are mounted, another one below it, a
// volume beside it, and the empty files and directories that mounting leaves in volumes.
func container(t *testing.T, work ...string) *staging.View {
	t.Helper()
	host := plant(t, t.TempDir(), "in.txt=input", "ref/genome.fa=ACGT", "ref/idx->genome.fa", "secret=host")
	w := plant(t, t.TempDir(), append([]string{"in.txt=", "ref/", "sub/"}, work...)...)
	sub := plant(t, t.TempDir(), "deep/f=in sub", "up->../a.txt", "abs->/work/a.txt")
	other := plant(t, t.TempDir(), "o.txt=other", "dir/x=1", "dir/y->x", "dir/back->/work/a.txt")
	return view(t,
		staging.Mount{Path: "/work", Root: volume(t, w)},
		staging.Mount{Path: "/work/in.txt", HostPath: filepath.Join(host, "in.txt")},
		staging.Mount{Path: "/work/ref", HostPath: filepath.Join(host, "ref")},
		staging.Mount{Path: "/work/sub", Root: volume(t, sub)},
		staging.Mount{Path: "/other", Root: volume(t, other)},
	)
}

func TestCollect(t *testing.T) {
	d := berth.Directory
	tests := []struct {
		name   string
		work   []string
		path   string
		typ    berth.FileType
		want   string // the tree at the URL's parent
		listed string
		err    string
		kind   error
		warns  string
	}{
		{name: "file", work: []string{"a.txt=hello"}, path: "/work/a.txt", want: "out=hello", listed: "/work/a.txt 5"},
		{name: "empty file", work: []string{"a.txt="}, path: "/work/a.txt", want: "out=", listed: "/work/a.txt 0"},
		{name: "input mounted in a volume", path: "/work/in.txt", want: "out=input", listed: "/work/in.txt 5"},
		{name: "in a mounted directory, through its link", path: "/work/ref/idx", want: "out=ACGT", listed: "/work/ref/idx 4"},
		{name: "volume in a volume", path: "/work/sub/deep/f", want: "out=in sub", listed: "/work/sub/deep/f 6"},
		{name: "not there", path: "/work/nope", err: "output /work/nope was not produced", kind: berth.ErrNotFound},
		{name: "below a file", work: []string{"a.txt=x"}, path: "/work/a.txt/b", err: "output /work/a.txt/b was not produced", kind: berth.ErrNotFound},
		{name: "outside all mounts", path: "/etc/passwd", err: "output /etc/passwd was not produced", kind: berth.ErrNotFound},
		{name: "relative link", work: []string{"a.txt=x", "d/l->../a.txt"}, path: "/work/d/l", want: "out=x", listed: "/work/d/l 1"},
		{name: "absolute link, as the container sees it", work: []string{"l->/work/in.txt"}, path: "/work/l", want: "out=input", listed: "/work/l 5"},
		{name: "link into another volume", work: []string{"l->../other/o.txt"}, path: "/work/l", want: "out=other", listed: "/work/l 5"},
		{name: "more .. than there are directories", work: []string{"l->../../../../work/in.txt"}, path: "/work/l", want: "out=input", listed: "/work/l 5"},
		{name: "link to the host", work: []string{"l->/etc/passwd"}, path: "/work/l", err: "output /work/l: the symbolic link leads outside the volumes and mounts of the task", kind: berth.ErrInvalid},
		{name: "link to the host by ..", work: []string{"l->../../../../../../etc/passwd"}, path: "/work/l", err: "output /work/l: the symbolic link leads outside the volumes and mounts of the task", kind: berth.ErrInvalid},
		{name: "through a link to the host", work: []string{"l->/etc"}, path: "/work/l/passwd", err: "output /work/l/passwd was not produced", kind: berth.ErrNotFound},
		{name: "dangling link", work: []string{"l->nope"}, path: "/work/l", err: "output /work/l: the symbolic link leads nowhere", kind: berth.ErrInvalid},
		{name: "circle", work: []string{"l->m", "m->l"}, path: "/work/l", err: "output /work/l: the symbolic link leads in a circle", kind: berth.ErrInvalid},
		{name: "pipe", work: []string{"p|"}, path: "/work/p", err: "output /work/p: invalid: it is a named pipe, and no file", kind: berth.ErrInvalid},
		{name: "pipe behind a link", work: []string{"p|", "l->p"}, path: "/work/l", err: "output /work/l: invalid: it is a named pipe, and no file", kind: berth.ErrInvalid},
		{name: "directory where a file was declared", path: "/other", typ: berth.File, err: "output /other: invalid: it is a directory, and no file", kind: berth.ErrInvalid},
		{name: "file where a directory was declared", path: "/other/o.txt", typ: d, err: "output /other/o.txt: invalid: it is a file, and no directory", kind: berth.ErrInvalid},
		{
			name: "directory", work: []string{"d/b/c=1", "d/a=22", "d/empty/"}, path: "/work/d", typ: d,
			want: "out/a=22 out/b/c=1 out/empty/", listed: "/work/d/a 2, /work/d/b/c 1",
		},
		{name: "directory of unknown type", work: []string{"d/a=22"}, path: "/work/d", want: "out/a=22", listed: "/work/d/a 2"},
		{name: "directory named by a link", work: []string{"d/a=22", "l->d"}, path: "/work/l", typ: d, want: "out/a=22", listed: "/work/l/a 2"},
		{
			name: "whole volume, with what is mounted in it", work: []string{"a.txt=x"}, path: "/work", typ: d,
			want:   "out/a.txt=x out/in.txt=input out/ref/genome.fa=ACGT out/ref/idx->genome.fa out/sub/abs->../a.txt out/sub/deep/f=in sub out/sub/up->../a.txt",
			listed: "/work/a.txt 1, /work/in.txt 5, /work/ref/genome.fa 4, /work/sub/deep/f 6",
		},
		{
			name: "links within stay links", work: []string{"d/lib.so.1.2=x", "d/lib.so.1->lib.so.1.2", "d/lib.so->lib.so.1", "d/e/up->../lib.so", "d/e/abs->/work/d/lib.so.1", "d/self->.", "d/odd->e/../lib.so"},
			path: "/work/d", typ: d,
			want:   "out/e/abs->../lib.so.1.2 out/e/up->../lib.so out/lib.so->lib.so.1 out/lib.so.1->lib.so.1.2 out/lib.so.1.2=x out/odd->lib.so.1.2 out/self->.",
			listed: "/work/d/lib.so.1.2 1",
		},
		{
			name: "links elsewhere are copied, once", work: []string{"a.txt=x", "d/l1->../a.txt", "d/l2->/work/a.txt", "d/o->/other/dir", "d/p->/other/dir/x"},
			path: "/work/d", typ: d,
			want:   "out/l1=x out/l2->l1 out/o/back->../l1 out/o/x=1 out/o/y->x out/p->o/x",
			listed: "/work/d/l1 1, /work/d/o/x 1",
		},
		{
			name: "link to what contains the directory", work: []string{"d/e/up->../..", "d/ok=1"}, path: "/work/d", typ: d,
			want: "out/e/ out/ok=1", listed: "/work/d/ok 1",
			warns: "output /work/d: /work/d/e/up is a symbolic link to ../.., which leads in a circle and is left out",
		},
		{
			name: "circle over another directory", work: []string{"d/l->/work/e", "e/m->/work", "e/ok=1"}, path: "/work/d", typ: d,
			want: "out/l/ok=1", listed: "/work/d/l/ok 1",
			warns: "output /work/d: /work/d/l/m is a symbolic link to /work, which leads in a circle and is left out",
		},
		{
			name: "circles of links in a directory are left out", work: []string{"d/a->b", "d/b->a", "d/ok=1", "d/self->self"}, path: "/work/d", typ: d,
			want: "out/ok=1", listed: "/work/d/ok 1",
			warns: "output /work/d: /work/d/a is a symbolic link to b, which leads in a circle and is left out\n" +
				"output /work/d: /work/d/b is a symbolic link to a, which leads in a circle and is left out\n" +
				"output /work/d: /work/d/self is a symbolic link to self, which leads in a circle and is left out",
		},
		{
			name: "links to the host in a directory are left out", work: []string{"d/ok=1", "d/l->/etc/passwd", "d/e->/etc", "d/up->../../../../etc/passwd"}, path: "/work/d", typ: d,
			want: "out/ok=1", listed: "/work/d/ok 1",
			warns: "output /work/d: /work/d/e is a symbolic link to /etc, which leads outside the volumes and mounts of the task and is left out\n" +
				"output /work/d: /work/d/l is a symbolic link to /etc/passwd, which leads outside the volumes and mounts of the task and is left out\n" +
				"output /work/d: /work/d/up is a symbolic link to ../../../../etc/passwd, which leads outside the volumes and mounts of the task and is left out",
		},
		{
			name: "dangling links in a directory are left out, and links to them", work: []string{"d/b/l->nope", "d/b/m->l", "d/ok=1"}, path: "/work/d", typ: d,
			want: "out/b/ out/ok=1", listed: "/work/d/ok 1",
			warns: "output /work/d: /work/d/b/l is a symbolic link to nope, which leads nowhere and is left out\n" +
				"output /work/d: /work/d/b/m is a symbolic link to l, which leads nowhere and is left out",
		},
		{
			name: "pipes and sockets in a directory", work: []string{"d/a=1", "d/p|", "d/s~", "d/l->p"}, path: "/work/d", typ: d,
			want: "out/a=1", listed: "/work/d/a 1",
			warns: "output /work/d: /work/d/l is a named pipe, which is left out\noutput /work/d: /work/d/p is a named pipe, which is left out\noutput /work/d: /work/d/s is a socket, which is left out",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dest := t.TempDir()
			var warns []string
			got, err := staging.Collect(t.Context(), container(t, tt.work...),
				[]berth.Output{{Path: tt.path, URL: filepath.Join(dest, "out"), Type: tt.typ}},
				staging.CollectOptions{Warn: func(s string) { warns = append(warns, s) }})
			if fmt.Sprint(err) != tt.err && (err != nil || tt.err != "") || !errors.Is(err, tt.kind) {
				t.Errorf("err %v, want %s (%v)", err, tt.err, tt.kind)
			}
			if got := show(t, dest); got != tt.want {
				t.Errorf("wrote %s\n want %s", got, tt.want)
			}
			if got := listed(got); got != tt.listed {
				t.Errorf("listed %s\n  want %s", got, tt.listed)
			}
			if got := strings.Join(warns, "\n"); got != tt.warns {
				t.Errorf("warned %s\n  want %s", got, tt.warns)
			}
		})
	}
}

// A file whose place is a directory of the host goes into it under its own name, as cp and docker cp have it; unless it was
// said that a file is meant. So does one whose place is a link to a directory.
func TestCollectIntoDirectory(t *testing.T) {
	tests := []struct{ name, there, typ, want, listed, err string }{
		{name: "a directory", there: "out/old=1", want: "out/a.txt=new out/old=1", listed: "out/a.txt"},
		{name: "a file in it", there: "out/a.txt=longer", want: "out/a.txt=new", listed: "out/a.txt"},
		{name: "a link to a directory", there: "real/ out->real", want: "out->real real/a.txt=new", listed: "out/a.txt"},
		{name: "a directory of its name in it", there: "out/a.txt/", want: "out/a.txt/", err: "cannot write %s/out/a.txt: it is a directory"},
		{name: "declared a file", there: "out/", typ: "FILE", want: "out/", err: "cannot write %s/out: it is a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dest := plant(t, t.TempDir(), strings.Fields(tt.there)...)
			o := berth.Output{Path: "/work/a.txt", URL: filepath.Join(dest, "out"), Type: berth.FileType(tt.typ)}
			got, err := staging.Collect(t.Context(), container(t, "a.txt=new"), []berth.Output{o}, staging.CollectOptions{})
			if want := "output /work/a.txt: " + fmt.Sprintf(tt.err, dest); tt.err != "" && (fmt.Sprint(err) != want || !errors.Is(err, berth.ErrConflict)) || tt.err == "" && err != nil {
				t.Errorf("err %v, want %s", err, want)
			}
			if got := show(t, dest); got != tt.want {
				t.Errorf("wrote %s\n want %s", got, tt.want)
			}
			if tt.listed != "" && (len(got) != 1 || got[0].URL != filepath.Join(dest, tt.listed)) {
				t.Errorf("listed %+v, want %s", got, tt.listed)
			}
		})
	}
}

// Of very many things that are left out, a few are told one by one, and the rest by their number.
func TestCollectLeavesOutMany(t *testing.T) {
	work := []string{"d/ok=1"}
	for i := range 1000 {
		work = append(work, fmt.Sprintf("d/l%d->nope", i))
	}
	dest := t.TempDir()
	var warns []string
	_, err := staging.Collect(t.Context(), container(t, work...), []berth.Output{{Path: "/work/d", URL: dest + "/out"}},
		staging.CollectOptions{Warn: func(s string) { warns = append(warns, s) }})
	if got := show(t, dest); err != nil || got != "out/ok=1" {
		t.Errorf("wrote %s, %v", got, err)
	}
	last := "output /work/d: 980 more pipes, sockets, devices and symbolic links that lead nowhere, outside or in a circle are left out"
	if len(warns) != 21 || warns[20] != last {
		t.Errorf("%d warnings, the last %s", len(warns), warns[len(warns)-1])
	}
}

func TestCollectPatterns(t *testing.T) {
	work := []string{"a.txt=1", "b.txt=2", ".h.txt=3", "c.log=4", "d/e/f.txt=5", "d/.g/h.txt=6", "d/x1=7", "d/[z]=8", "{p,q}=9", "l->d", "gone->nope.txt"}
	tests := []struct {
		name, path, prefix string
		typ                berth.FileType
		optional           bool
		want, err          string
		warns              string
	}{
		{name: "star", path: "/other/*.txt", want: "out/o.txt=other"},
		{name: "star takes no hidden file", path: "/work/[ab]*", want: "out/a.txt=1 out/b.txt=2"},
		{name: "hidden", path: "/work/.*", want: "out/.h.txt=3"},
		{name: "in all directories", path: "/work/d/**/*.txt", want: "out/e/f.txt=5"},
		{name: "none at all counts as a directory", path: "/work/d/**/x1", want: "out/x1=7"},
		{name: "** within a name", path: "/work/**.log", want: "out/c.log=4"},
		{name: "** at the end", path: "/work/d/**", want: "out/[z]=8 out/e/f.txt=5 out/x1=7"},
		{name: "a prefix", path: "/work/*/x?", prefix: "/work", want: "out/d/x1=7 out/l/x1=7"},
		{name: "a prefix that is no directory", path: "/work/d/x*", prefix: "/work/d/x", want: "out/1=7"},
		{name: "another prefix", path: "/work/d/x*", prefix: "/other", err: "output /work/d/x*: invalid: /work/d/x1 does not begin with the path prefix /other"},
		{name: "escapes", path: `/work/d/\[?]`, want: "out/[z]=8"},
		{name: "named like a pattern", path: "/work/d/[z]", want: "out/[z]=8"},
		{name: "braces are letters", path: "/work/{p,q}*", want: "out/{p,q}=9"},
		{name: "directories whole", path: "/work/d*", want: "out/d/.g/h.txt=6 out/d/[z]=8 out/d/e/f.txt=5 out/d/x1=7"},
		{name: "files only", path: "/work/[d.ac]*", typ: berth.File, want: "out/a.txt=1 out/c.log=4"},
		{name: "directories only", path: "/other/*", typ: berth.Directory, want: "out/dir/back=1 out/dir/x=1 out/dir/y->x"},
		{name: "what is mounted", path: "/work/i*", want: "out/in.txt=input"},
		{name: "mount points", path: "/*/o.txt", want: "out/other/o.txt=other"},
		{name: "nothing", path: "/work/*.bam", err: "output /work/*.bam was not produced: nothing matches"},
		{name: "nothing, and optional", path: "/work/*.bam", optional: true},
		{name: "a link that leads nowhere", path: "/work/gon*", err: "output /work/gone: the symbolic link leads nowhere"},
		{name: "to the directory above", path: `/work/.\./*`, err: `output /work/.\./*: pattern "/work/.\\./*": invalid: it has a ".."`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dest := t.TempDir()
			var warns []string
			_, err := staging.Collect(t.Context(), container(t, work...),
				[]berth.Output{{Path: tt.path, URL: "file://" + dest + "/out", PathPrefix: tt.prefix, Type: tt.typ, Optional: tt.optional}},
				staging.CollectOptions{Warn: func(s string) { warns = append(warns, s) }})
			if fmt.Sprint(err) != tt.err && (err != nil || tt.err != "") {
				t.Errorf("err %v, want %s", err, tt.err)
			}
			if got := show(t, dest); got != tt.want {
				t.Errorf("wrote %s\n want %s", got, tt.want)
			}
			if got := strings.Join(warns, "\n"); got != tt.warns {
				t.Errorf("warned %s\n  want %s", got, tt.warns)
			}
		})
	}
}

func TestCollectLeavesNoTail(t *testing.T) {
	dest := plant(t, t.TempDir(), "out="+strings.Repeat("long", 100))
	_, err := staging.Collect(t.Context(), container(t, "a.txt=short"),
		[]berth.Output{{Path: "/work/a.txt", URL: "file://" + dest + "/out"}}, staging.CollectOptions{})
	if got := show(t, dest); err != nil || got != "out=short" {
		t.Errorf("%s, %v", got, err)
	}
}

// A directory output is merged into a directory that is there; what stands in its way stops all of it.
func TestCollectMerge(t *testing.T) {
	tests := []struct{ name, there, want, err string }{
		{name: "fresh", want: "out/d/e/f=new out/d/g=new out/l->d/g"},
		{name: "empty", there: "out/", want: "out/d/e/f=new out/d/g=new out/l->d/g"},
		{name: "merged", there: "out/d/e/old=1 out/d/g=old-and-longer out/x=2", want: "out/d/e/f=new out/d/e/old=1 out/d/g=new out/l->d/g out/x=2"},
		{name: "a link is replaced, not followed", there: "elsewhere=1 out/d/g->../../elsewhere", want: "elsewhere=1 out/d/e/f=new out/d/g=new out/l->d/g"},
		{
			name: "a link where a directory is needed", there: "elsewhere/ out/d->../elsewhere",
			want: "elsewhere/ out/d->../elsewhere", err: "output /v/t: cannot write DEST/out: d is a symbolic link there",
		},
		{
			name: "a file where a directory is needed", there: "out/d/e=1 out/d/g=old",
			want: "out/d/e=1 out/d/g=old", err: "output /v/t: cannot write DEST/out: d/e is a file there",
		},
		{name: "a file in its own place", there: "out=1", want: "out=1", err: "output /v/t: cannot write DEST/out: not a directory"},
		{name: "through a link of the user", there: "real/x=1 out->real", want: "out->real real/d/e/f=new real/d/g=new real/l->d/g real/x=1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dest := plant(t, t.TempDir(), strings.Fields(tt.there)...)
			v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "t/d/e/f=new", "t/d/g=new", "t/l->d/g"))})
			_, err := staging.Collect(t.Context(), v, []berth.Output{{Path: "/v/t", URL: dest + "/out"}}, staging.CollectOptions{})
			msg := ""
			if err != nil {
				msg = strings.ReplaceAll(err.Error(), dest, "DEST")
				if !errors.Is(err, berth.ErrConflict) {
					t.Errorf("kind of %v", err)
				}
			}
			if msg != tt.err {
				t.Errorf("err %s, want %s", msg, tt.err)
			}
			if got := show(t, dest); got != tt.want {
				t.Errorf("wrote %s\n want %s", got, tt.want)
			}
		})
	}
}

// A failed output keeps no other from being collected.
func TestCollectAll(t *testing.T) {
	dest := t.TempDir()
	got, err := staging.Collect(t.Context(), container(t, "a=1", "b=2"), []berth.Output{
		{Path: "/work/nope", URL: dest + "/x/nope"},
		{Path: "/work/a", URL: dest + "/new/dirs/a"},
		{Path: "/work/gone", URL: dest + "/y/gone", Optional: true},
		{Path: "/work/b", URL: "s3://bucket/b"},
		{Path: "/work/../b", URL: dest + "/b"},
		{Path: "/work/b", URL: "relative/b"},
		{Path: "/work/b", URL: "file:///" + strings.TrimPrefix(dest, "/") + "/with%20space%25"},
		{Path: "/work/b", URL: dest + "/into/"},
	}, staging.CollectOptions{})
	want := "output /work/nope was not produced\n" +
		"output /work/b: unsupported: scheme s3; outputs go to file:// URLs and absolute paths\n" +
		"output /work/../b: container path \"/work/../b\": invalid: it has a \"..\"\n" +
		"output /work/b: \"relative/b\": invalid: neither a URL nor an absolute path"
	if fmt.Sprint(err) != want {
		t.Errorf("%v", err)
	}
	if got := show(t, dest); got != "into/b=2 new/dirs/a=1 with space%=2" {
		t.Errorf("wrote %s", got)
	}
	var urls []string
	for _, f := range got {
		urls = append(urls, strings.ReplaceAll(f.URL, dest, "DEST"))
	}
	if got := strings.Join(urls, " "); got != "DEST/new/dirs/a file://DEST/with%20space%25 DEST/into/b" {
		t.Errorf("URLs %s", got)
	}
}

func TestCollectKeepsModeAndTime(t *testing.T) {
	v := plant(t, t.TempDir(), "d/f=1", "d/e/g=2")
	when := time.Date(2020, 2, 3, 4, 5, 6, 789, time.UTC)
	for name, mode := range map[string]os.FileMode{"d/f": 0o640 | os.ModeSetuid | os.ModeSetgid, "d/e": 0o755 | os.ModeSetgid | os.ModeSticky, "d": 0o711} {
		p := filepath.Join(v, name)
		if err := errors.Join(os.Chmod(p, mode), os.Chtimes(p, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	dest := t.TempDir()
	if _, err := staging.Collect(t.Context(), view(t, staging.Mount{Path: "/v", Root: volume(t, v)}),
		[]berth.Output{{Path: "/v/d", URL: dest + "/d"}}, staging.CollectOptions{Sync: true}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"d/f": 0o640, "d/e": 0o755 | os.ModeSticky | os.ModeDir, "d": 0o711 | os.ModeDir} {
		info, err := os.Lstat(filepath.Join(dest, name))
		if err != nil || info.Mode() != mode || !info.ModTime().Equal(when) {
			t.Errorf("%s: %v %v, %v", name, info.Mode(), info.ModTime(), err)
		}
	}
}
