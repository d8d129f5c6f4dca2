package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// inside runs hooks in this process for the container.
func (c *container) inside(kept *Kept, key string, args ...string) (said string, err error) {
	c.t.Helper()
	root, err := os.Open(c.root)
	if err != nil {
		c.t.Fatal(err)
	}
	defer root.Close()
	var log bytes.Buffer
	in := Inside{Root: root, Env: []string{"A=b"}, Log: &log, Kept: kept, Key: key}
	err = in.Run(context.Background(), args)
	return log.String(), err
}

// files are all files below the root: their modes and contents, or where they lead.
func (c *container) files() map[string]string {
	c.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(c.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := ""
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			text, err = os.Readlink(name)
		case d.Type().IsRegular():
			var data []byte
			data, err = os.ReadFile(name)
			text = string(data)
		}
		all[strings.TrimPrefix(name, c.root)] = info.Mode().String() + " " + text
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

var all = []string{
	"create-symlinks", "--link", "libx.so.1::/driver/libx.so", "--link", "y::/new/dir/y",
	"++", "enable-cuda-compat", "--host-driver-version=550.1.1",
	"++", "update-ldcache", "--folder", "/driver", "--folder", "/lib",
	"++", "disable-device-node-modification",
	"++", "update-application-profile",
	"++", "chmod", "--mode", "711", "--path", "/driver",
}

// image is a container with a compatible CUDA and a linker's configuration.
func image(t *testing.T) *container {
	c := newContainer(t, map[string]string{
		"etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/a.conf": "/opt/a\n",
		"usr/local/cuda/compat/libcuda.so.560.1": "no library", "usr/local/cuda/compat/libcuda.so.1": "-> libcuda.so.560.1",
	})
	for _, name := range []string{"driver/libx.so.1.2", "opt/a/liba.so.6", "lib/libl.so"} {
		c.library(name)
	}
	return c
}

// TestInsideAsTheProgram: both leave the same behind; and so does who takes what was kept of a container that is alike.
func TestInsideAsTheProgram(t *testing.T) {
	want, got, again := image(t), image(t), image(t)
	want.must(all...)
	kept := &Kept{}
	for _, c := range []*container{got, again} {
		if said, err := c.inside(kept, "k", all...); err != nil || said != "" {
			t.Fatal(said, err)
		}
		if diff := cmp.Diff(want.files(), c.files()); diff != "" {
			t.Error(diff)
		}
	}
	if len(kept.files) != 1 {
		t.Errorf("%d are kept", len(kept.files))
	}
}

// TestKeptIsOfItsKey: another container's cache is not taken for this one's.
func TestKeptIsOfItsKey(t *testing.T) {
	kept := &Kept{}
	first, second, want := image(t), image(t), image(t)
	for _, c := range []*container{second, want} {
		c.library("driver/libnew.so.1")
	}
	if _, err := first.inside(kept, "1", all...); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"2", ""} {
		if _, err := second.inside(kept, key, all...); err != nil {
			t.Fatal(err)
		}
	}
	want.must(all...)
	want.must(all...) // twice, as the second
	if diff := cmp.Diff(want.files(), second.files()); diff != "" {
		t.Error(diff)
	}
	if len(kept.files) != 2 {
		t.Errorf("%d are kept", len(kept.files))
	}
}

// TestKeptIsOfItsHook: what one hook of a container made is not taken for what another is to make, nor for the same
// one after that.
func TestKeptIsOfItsHook(t *testing.T) {
	args := []string{
		"update-ldcache", "--folder", "/driver", "++", "update-ldcache", "--folder", "/other", "++",
		"update-ldcache", "--folder", "/driver",
	}
	want, first, second, kept := image(t), image(t), image(t), &Kept{}
	for _, c := range []*container{want, first, second} {
		c.library("other/libo.so.1")
	}
	want.must(args...)
	for _, c := range []*container{first, second} {
		if _, err := c.inside(kept, "k", args...); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.files(), c.files()); diff != "" {
			t.Error(diff)
		}
	}
}

// TestNotKept: what depends on a directory that is mounted in the container is found out each time.
func TestNotKept(t *testing.T) {
	for name, tt := range map[string]struct {
		conf, link string // the linker's configuration; a link at /opt/l
		files      map[string]string
		before     string // hooks that are run before
		file       bool   // that is mounted, not a directory
		keeps      bool
	}{
		"nothing of it":                    {conf: "/opt/a\n", keeps: true},
		"a directory":                      {conf: "/data\n"},
		"one below that is missing":        {conf: "/data/lib\n"},
		"one that is missing":              {conf: "/opt/none/lib\n", keeps: true},
		"a link to it":                     {conf: "/opt/l\n", link: "../data"},
		"a link to what is missing":        {conf: "/opt/l\n", link: "../data/lib"},
		"through a link":                   {conf: "/opt/l/lib\n", link: "../data"},
		"a file that is mounted":           {conf: "/opt/a\n", file: true, keeps: true},
		"configuration in there":           {conf: "include /data/*.conf\n"},
		"a link in there that leads back":  {conf: "/data/back\n"},
		"a link before that leads back":    {conf: "/opt/a\n", before: "create-symlinks --link x::/data/back/x"},
		"another run before":               {conf: "/opt/a\n", before: "chmod --mode 755 --path /data/back ;"},
		"the image's CUDA in there":        {conf: "/opt/a\n", before: "enable-cuda-compat --host-driver-version=550.1 --cuda-compat-container-root=/data"},
		"the image's CUDA":                 {conf: "/opt/a\n", before: "enable-cuda-compat --host-driver-version=550.1 --cuda-compat-container-root=/opt/a", keeps: true},
		"what tells musl in there":         {conf: "/opt/a\n", files: map[string]string{"etc/alpine-release": "-> /data/none"}},
		"a link to a file that is mounted": {conf: "/opt/a\n", files: map[string]string{"opt/a/libl.so": "-> liba.so"}, file: true, keeps: true},
		"a library's link to within":       {conf: "/opt/a\n", link: "../data/libz.so"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t, map[string]string{"etc/ld.so.conf": tt.conf, "data/x": "", "etc/x": "", "opt/a/x": ""})
			for name, text := range tt.files {
				c.put(filepath.Join(c.root, name), text)
			}
			data := t.TempDir()
			c.put(filepath.Join(data, "back"), "-> /opt/a")
			c.library("opt/a/liba.so")
			c.library("driver/libx.so")
			if tt.link != "" {
				c.put(filepath.Join(c.root, "opt/l"), "-> "+tt.link)
			}
			if strings.HasPrefix(name, "a library's") {
				c.put(filepath.Join(c.root, "opt/a/libz.so"), "-> /data/libz.so")
			}
			kept := &Kept{}
			inMountNamespace(t, func() error {
				from, to := data, filepath.Join(c.root, "data")
				if tt.file {
					from, to = filepath.Join(c.root, "driver/libx.so"), filepath.Join(c.root, "opt/a/liba.so")
				}
				if err := bind(from, to); err != nil {
					return err
				}
				root, err := os.Open(c.root)
				if err != nil {
					return err
				}
				defer root.Close()
				in, args := Inside{Root: root, Log: io.Discard, Kept: kept, Key: "k"}, []string{"update-ldcache", "--folder", "/driver"}
				if before, apart := strings.CutSuffix(tt.before, " ;"); apart {
					err = in.Run(t.Context(), strings.Fields(before))
				} else if before != "" {
					args = append(append(strings.Fields(before), andThen), args...)
				}
				if err := errors.Join(err, in.Run(t.Context(), args)); err != nil {
					return err
				}
				if has := len(kept.files) == 1; has != tt.keeps {
					return fmt.Errorf("kept: %v", has)
				}
				return nil
			})
		})
	}
}

// TestTooMuchInside: what an image has too much of for a process that has other things to do is left as it was.
func TestTooMuchInside(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"a large cache":  {"etc/ld.so.cache": strings.Repeat("x", 2<<20)},
		"long names":     {"etc/ld.so.cache": string(cacheOf(20_000, 4000))},
		"large settings": {"etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/a.conf": strings.Repeat("#x\n", 300_000), "etc/ld.so.conf.d/b.conf": strings.Repeat("#x\n", 300_000)},
	} {
		c := newContainer(t, files)
		c.library("driver/libc.so.6")
		before, kept := c.files(), &Kept{}
		if _, err := c.inside(kept, "k", "update-ldcache", "--folder", "/driver"); !errors.Is(err, ErrTooMuch) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(before, c.files()); diff != "" || len(kept.files) > 0 {
			t.Errorf("%s: %s, %d kept", name, diff, len(kept.files))
		}
		if code, out := c.run("update-ldcache", "--folder", "/driver"); code != 0 {
			t.Errorf("%s, the program: %d, %s", name, code, out)
		}
	}
}

func TestKeptIsBounded(t *testing.T) {
	k := &Kept{}
	for i := range 100 {
		k.keep(fmt.Sprint(i), linkerFiles{cache: make([]byte, maxKept/10)})
		if _, ok := k.recall(fmt.Sprint(i)); !ok || k.bytes > maxKept || len(k.files) > 10 {
			t.Fatalf("%d: %v, %d bytes, %d", i, ok, k.bytes, len(k.files))
		}
	}
	k.keep("large", linkerFiles{cache: make([]byte, maxKept+1)})
	if _, ok := k.recall("large"); ok {
		t.Error("more is kept than may be")
	}
}

func TestKnown(t *testing.T) {
	for text, want := range map[string]bool{
		"create-symlinks --link a::b": true, "update-ldcache ++ chmod --mode 1": true,
		"": false, "update-ldcache ++": false, "nonsense": false, "chmod ++ nonsense": false,
	} {
		if got := Known(strings.Fields(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if !MountsOver(all) || MountsOver([]string{"chmod", "--path", overParams}) {
		t.Error("what mounts something is not told apart")
	}
	c := image(t)
	for _, text := range []string{"nonsense", "chmod --nonsense", "chmod x", "create-symlinks --link nonsense"} {
		if _, err := c.inside(nil, "", strings.Fields(text)...); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestInto(t *testing.T) {
	for args, want := range map[string]string{
		"":       "",
		"chmod ": "",
		"create-symlinks --link a::/usr/lib/b --link=../c::/usr/lib/d ++ update-ldcache --folder /x ++ update-application-profile": "/usr/lib /etc",
		"++ create-symlinks --link a::b --link a --link ::/dev/x":                                                                  ". /dev",
	} {
		if got := strings.Join(Into(strings.Fields(args)), " "); got != want {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
}
