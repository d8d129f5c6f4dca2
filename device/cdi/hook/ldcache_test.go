package hook

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// listed is what ldconfig, from glibc itself, reads in a cache.
func listed(t *testing.T, file string) []string {
	t.Helper()
	out, err := exec.Command("/sbin/ldconfig", "-p", "-C", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return regexp.MustCompile(`(?m)^\t.*$`).FindAllString(string(out), -1)
}

// TestCacheOfThisHost reads the cache that this host's ldconfig wrote, and has it read what becomes of it.
func TestCacheOfThisHost(t *testing.T) {
	data, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseLinkerCache(data, ofProgram.texts)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cache")
	if err := os.WriteFile(file, c.bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	want := listed(t, "/etc/ld.so.cache")
	if len(want) < 10 {
		t.Fatalf("the host's cache lists %d libraries; the test saw nothing", len(want))
	}
	if diff := cmp.Diff(want, listed(t, file)); diff != "" {
		t.Error(diff)
	}
}

// TestCacheWithHwcaps: an ldconfig that knows libraries for special hardware writes an extension.
func TestCacheWithHwcaps(t *testing.T) {
	c := newContainer(t, map[string]string{"etc/ld.so.conf": "/opt/l\n"})
	c.library("opt/l/libc.so.6")
	c.library("opt/l/glibc-hwcaps/x86-64-v2/libc.so.6")
	if out, err := exec.Command("/sbin/ldconfig", "-r", c.root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cache := filepath.Join(c.root, cacheFile)
	want := listed(t, cache)
	if !strings.Contains(strings.Join(want, "\n"), "x86-64-v2") {
		t.Fatalf("no library for special hardware in %q; the test saw nothing", want)
	}
	parsed, err := parseLinkerCache([]byte(c.read(cacheFile)), ofProgram.texts)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cache, parsed.bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, listed(t, cache)); diff != "" {
		t.Error(diff)
	}
}

// libraryOf finds the file that the host's linker has for a name.
func libraryOf(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"} {
		if real, err := filepath.EvalSymlinks(filepath.Join(dir, name)); err == nil {
			return real
		}
	}
	t.Fatalf("%s is not on this host", name)
	return ""
}

// library puts the host's C library under a name into the container.
func (c *container) library(name string) { c.copy(libraryOf(c.t, "libc.so.6"), name) }

func (c *container) copy(from, name string) {
	c.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		c.t.Fatal(err)
	}
	c.put(filepath.Join(c.root, name), string(data))
}

// TestLinkerFindsLibraries runs a program in a root whose libraries are where only the cache says.
func TestLinkerFindsLibraries(t *testing.T) {
	for _, withCache := range []bool{true, false} {
		c := newContainer(t, map[string]string{"tmp/x": "", "etc/hostname": ""})
		program := "/bin/ls"
		out, err := exec.Command("ldd", program).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(`).FindAllStringSubmatch(string(out), -1) {
			real, err := filepath.EvalSymlinks(m[1])
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(filepath.Base(m[1]), "ld-") {
				c.copy(real, m[1])
			} else {
				// Under the name of its file, as drivers are mounted: the link of its soname is to be made.
				c.copy(real, "opt/driver/"+filepath.Base(real)+".500.1")
			}
		}
		c.copy(program, "bin/ls")
		if withCache {
			if out, err := exec.Command("/sbin/ldconfig", "-r", c.root).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		ls := func() (string, error) {
			out, err := exec.Command("chroot", c.root, "/bin/ls", "/tmp").CombinedOutput()
			return string(out), err
		}
		if out, err := ls(); err == nil {
			t.Fatalf("ran before the hook: %s; the test sees nothing", out)
		}
		c.must("update-ldcache", "--ldconfig-path", "/sbin/ldconfig", "--folder", "/opt/driver", "--folder=/opt/driver", "--folder", "/not/there")
		if out, err := ls(); err != nil || out != "x\n" {
			t.Errorf("with a cache before: %v: %v, %s\n%s", withCache, err, out, strings.Join(listed(t, filepath.Join(c.root, cacheFile)), "\n"))
		}
		if got := c.read(ownConf); got != "/opt/driver\n/not/there\n" {
			t.Errorf("%s: %q", ownConf, got)
		}
		if got := c.read(confFile); got != "include /etc/ld.so.conf.d/*.conf\n" {
			t.Errorf("%s: %q", confFile, got)
		}
		// Once more changes nothing, and an ldconfig in the container finds the same.
		once := c.read(cacheFile)
		c.must("update-ldcache", "--folder", "/opt/driver")
		if c.read(cacheFile) != once {
			t.Error("the second run changed the cache")
		}
		if out, err := exec.Command("/sbin/ldconfig", "-r", c.root).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := ls(); err != nil || out != "x\n" {
			t.Errorf("after an ldconfig: %v, %s", err, out)
		}
	}
}

func TestCompatComesFirst(t *testing.T) {
	c := newContainer(t, map[string]string{"etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/image.conf": "/image # the image's\n"})
	c.library("image/libc.so.6")
	c.library("usr/local/cuda-12/compat/libcuda.so.550.1.1")
	c.library("driver/libcuda.so.535.1.1")
	c.put(filepath.Join(c.root, "usr/local/cuda"), "-> cuda-12")
	c.must("enable-cuda-compat", "--host-driver-version=535.1.1")
	if got := c.read(confDir + "/" + compatConf); got != "/usr/local/cuda-12/compat\n" {
		t.Errorf("%q", got)
	}
	c.must("update-ldcache", "--folder", "/driver")
	got := strings.Join(listed(t, filepath.Join(c.root, cacheFile)), "\n")
	a, b, d := strings.Index(got, "/usr/local/cuda-12/compat/libc.so.6"), strings.Index(got, "/driver/libc.so.6"), strings.Index(got, "/image/libc.so.6")
	if a < 0 || b < a || d < b {
		t.Errorf("want the image's CUDA, then the driver, then the rest:\n%s", got)
	}
}

func TestHostileCaches(t *testing.T) {
	host, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Fatal(err)
	}
	for name, cache := range map[string]string{
		"cut": string(host[:len(host)/2]), "nonsense": "x", "empty": "", "a link out": "-> OUTSIDE/victim", "a directory on the way": "DIR",
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t, nil)
			c.library("driver/libx.so.1.1")
			if cache == "DIR" {
				c.put(filepath.Join(c.root, "etc"), "-> "+c.outside)
				if code, out := c.run("update-ldcache", "--folder", "/driver"); code != 1 {
					t.Errorf("%d, %s", code, out)
				}
				return
			}
			c.put(filepath.Join(c.root, cacheFile), strings.Replace(cache, "OUTSIDE", c.outside, 1))
			code, out := c.run("update-ldcache", "--folder", "/driver")
			if code != 0 || (strings.HasPrefix(cache, "-> ") != (out == "")) {
				t.Errorf("%d, %q", code, out)
			}
			if got := listed(t, filepath.Join(c.root, cacheFile)); len(got) != 1 || !strings.HasSuffix(got[0], "=> /driver/libc.so.6") {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestFolders(t *testing.T) {
	c := newContainer(t, map[string]string{"driver/libnot.so": "text", "driver/libpipe.so": "-> /dev/zero", "driver/other": ""})
	c.library("driver/libx.so.9")
	c.library("driver/libx.so.10")
	c.put(filepath.Join(c.root, "driver/libx.so"), "-> libx.so.9")
	c.put(filepath.Join(c.root, "driver/libout.so"), "-> "+filepath.Join(c.outside, "victim"))
	c.must("update-ldcache", "--folder", "/driver")
	want := []string{"\tlibx.so (libc6,x86-64) => /driver/libx.so", "\tlibc.so.6 (libc6,x86-64) => /driver/libc.so.6"}
	got := listed(t, filepath.Join(c.root, cacheFile))
	for i := range got {
		got[i] = regexp.MustCompile(`, OS ABI: [^)]*`).ReplaceAllString(got[i], "")
		got[i] = strings.Replace(got[i], "AArch64", "x86-64", 1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if to, err := os.Readlink(filepath.Join(c.root, "driver/libc.so.6")); to != "libx.so.10" {
		t.Errorf("the soname leads to %q, %v; want the newest", to, err)
	}
	for _, f := range []string{"relative", "/a\nb", "/a#b"} {
		if code, out := c.run("update-ldcache", "--folder", f); code != 1 || strings.Count(out, "\n") != 1 {
			t.Errorf("%q: %d, %q", f, code, out)
		}
	}
}

func TestMuslPath(t *testing.T) {
	c := newContainer(t, map[string]string{"etc/alpine-release": "3.20.0\n"})
	c.must("update-ldcache", "--folder", "/driver")
	c.must("update-ldcache", "--folder", "/driver", "--folder", "/more")
	files, _ := filepath.Glob(filepath.Join(c.root, "etc/ld-musl-*.path"))
	if len(files) != 1 {
		t.Fatalf("%v", files)
	}
	if data, _ := os.ReadFile(files[0]); string(data) != "/lib\n/usr/local/lib\n/usr/lib\n/driver\n/more\n" {
		t.Errorf("%q", data)
	}
}

func TestConfLoopsEnd(t *testing.T) {
	c := newContainer(t, map[string]string{
		"etc/ld.so.conf":          "include ld.so.conf.d/*.conf\ninclude /etc/ld.so.conf\n",
		"etc/ld.so.conf.d/a.conf": "/a\n/b=libc6\nhwcap 1 x\n# no\n\nrelative\n",
		"etc/ld.so.conf.d/b.conf": "include b.conf\n/c",
	})
	seen := map[string]bool{}
	for _, d := range c.job().confDirs(confFile) {
		seen[d] = true
	}
	if diff := cmp.Diff(map[string]bool{"/a": true, "/b": true, "/c": true}, seen); diff != "" {
		t.Error(diff)
	}
}

func TestCompareLibraries(t *testing.T) {
	sorted := []string{"", "a", "lib.so.0", "lib.so.9", "lib.so.10", "lib.so.10.1", "libA.so"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := compareLibraries(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
	if compareLibraries("lib.so.007", "lib.so.7") != 0 {
		t.Error("leading zeros count")
	}
}

func FuzzLinkerCache(f *testing.F) {
	host, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		f.Fatal(err)
	}
	small := (&linkerCache{
		entries: []cacheEntry{{"libx.so.1", "/a/libx.so.1", 0x303, 0, hwcapNamed}, {"liby.so.1", "/a/liby.so.1", 0x303, 0, 0}},
		hwcaps:  []string{"x86-64-v3"},
	}).bytes()
	f.Add(small)
	f.Add(host[:min(len(host), 4096)])
	f.Add(append([]byte(oldMagic+"\x00\x00\x00\x00\x00"), small...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseLinkerCache(data, ofProgram.texts)
		if err != nil {
			return
		}
		text := c.bytes()
		again, err := parseLinkerCache(text, ofProgram.texts)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if !bytes.Equal(again.bytes(), text) {
			t.Error("written in two ways")
		}
	})
}

func FuzzELF(f *testing.F) {
	f.Add([]byte("\x7fELF"))
	if lib, err := os.ReadFile("/lib64/ld-linux-x86-64.so.2"); err == nil {
		f.Add(lib[:4096])
	}
	f.Add(compatELF(`{"CUDA Version":"12.9","Driver":[535]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &counter{r: bytes.NewReader(data)}
		_, _ = readLibrary(r)
		_, _ = readCompatNote(r)
		if r.n > 4<<20 {
			t.Errorf("read %d bytes", r.n)
		}
	})
}

// counter counts the bytes that are asked for, which is what is allocated.
type counter struct {
	r io.ReaderAt
	n int
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.n += len(p)
	return c.r.ReadAt(p, off)
}
