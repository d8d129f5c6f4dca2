package hook

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// allocated is how many bytes f takes from the heap.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// cacheOf makes a cache whose entries all have names and paths at growing offsets of one long text.
func cacheOf(entries, text int) []byte {
	le := binary.LittleEndian
	out := make([]byte, cacheHeader)
	copy(out, cacheMagic)
	le.PutUint32(out[20:], uint32(entries))
	texts := uint32(cacheHeader + entries*cacheEntryLen)
	for i := range uint32(entries) {
		at := texts + i%uint32(text/2)
		for _, v := range []uint32{3, at, at, 0, 0, 0} {
			out = le.AppendUint32(out, v)
		}
	}
	return append(append(out, bytes.Repeat([]byte{'x'}, text)...), 0)
}

// TestCacheMemory reads caches that would become thousands of times as large in memory as they are in the file.
func TestCacheMemory(t *testing.T) {
	for _, c := range []struct {
		name          string
		entries, text int
		want          error
	}{
		{"overlapping names", 100_000, 4000, errLarge},
		{"many libraries", maxLibraries + 1, 20, errLarge},
		{"a large system", 20_000, 150, nil},
	} {
		data := cacheOf(c.entries, c.text)
		var err error
		took := allocated(func() { _, err = parseLinkerCache(data, ofProgram.texts) })
		if !errors.Is(err, c.want) || took > 32<<20 {
			t.Errorf("%s: %v, %d MiB", c.name, err, took>>20)
		}
	}
}

// TestCacheHwcapsMemory has one list of names be named again and again.
func TestCacheHwcapsMemory(t *testing.T) {
	le := binary.LittleEndian
	data := cacheOf(0, 100)
	for len(data)%4 != 0 {
		data = append(data, 0)
	}
	const lists, names = 1000, 1000
	at := uint32(len(data))
	le.PutUint32(data[32:], at)
	data = le.AppendUint32(le.AppendUint32(data, extMagic), lists)
	for range lists {
		for _, v := range []uint32{extHwcaps, 0, at + 8 + lists*16, names * 4} {
			data = le.AppendUint32(data, v)
		}
	}
	for range names {
		data = le.AppendUint32(data, cacheHeader)
	}
	var err error
	if took := allocated(func() { _, err = parseLinkerCache(data, ofProgram.texts) }); !errors.Is(err, errLarge) || took > 8<<20 {
		t.Errorf("%v, %d MiB", err, took>>20)
	}
}

// TestConfBounds has images whose linker configuration would never end.
func TestConfBounds(t *testing.T) {
	include := func(n int) string { return fmt.Sprintf("/d%d\ninclude /c/%d.conf\n", n, n) }
	for _, c := range []struct {
		name, what string
		dirs       int // at least
		files      func(put func(name, text string))
	}{
		{"deep", "files that include each other", maxConfDepth, func(put func(name, text string)) {
			put("0", include(1))
			for i := range 100 {
				put(fmt.Sprint(i+1), include(i+2))
			}
		}},
		{"many patterns", "patterns to include", 0, func(put func(name, text string)) {
			put("0", strings.Repeat("include /c/x*.conf ", 2*maxConfPatterns)+"\n"+strings.Repeat("include /c/x*.conf\n", 2*maxConfPatterns))
		}},
		{"many files", "files", 0, func(put func(name, text string)) {
			put("0", "include /c/x*.conf\n")
			for i := range maxConfFiles + 10 {
				put(fmt.Sprint("x", i), "")
			}
		}},
		{"large files", "bytes of its files", 0, func(put func(name, text string)) {
			put("0", "include /c/x*.conf\n")
			for i := range 20 {
				put(fmt.Sprint("x", i), strings.Repeat("\n", maxConfSize))
			}
		}},
		{"files that are too large", "bytes of its files", 0, func(put func(name, text string)) {
			put("0", "include /c/x*.conf\n")
			for i := range 20 {
				put(fmt.Sprint("x", i), strings.Repeat("\n", maxConfSize+1))
			}
		}},
		{"many directories", "directories", maxConfDirs, func(put func(name, text string)) {
			var b strings.Builder
			for i := range 2 * maxConfDirs {
				fmt.Fprintf(&b, "/d%d\n", i)
			}
			put("0", b.String())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			container := newContainer(t, nil)
			c.files(func(name, text string) { container.put(filepath.Join(container.root, "c", name+".conf"), text) })
			j := container.job()
			dirs := j.confDirs("/c/0.conf")
			if said := fmt.Sprint(j.log); !strings.Contains(said, c.what+"; the rest is left out") || strings.Count(said, "\n") != 1 {
				t.Errorf("%q", said)
			}
			if len(dirs) < c.dirs || len(dirs) > maxConfDirs {
				t.Errorf("%d directories", len(dirs))
			}
		})
	}
}

// TestDirectoryBounds has a directory of libraries with more entries than are read.
func TestDirectoryBounds(t *testing.T) {
	c := newContainer(t, nil)
	c.library("driver/libx.so.1")
	j := c.job()
	j.entries = ofProgram.allEntries - 1
	if got := j.scan("/driver", &linkerFiles{}); len(got) != 1 || j.entries != ofProgram.allEntries {
		t.Errorf("%v, %d", got, j.entries)
	}
	for i := range 3 {
		if err := os.WriteFile(filepath.Join(c.root, "driver", fmt.Sprint("other", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, left := range []int{2, 0} {
		j = c.job()
		j.entries = ofProgram.allEntries - left
		if got := j.scan("/driver", &linkerFiles{}); got != nil || !strings.Contains(fmt.Sprint(j.log), "left out") {
			t.Errorf("%d: %v, %v", left, got, j.log)
		}
		if j.entries != ofProgram.allEntries {
			t.Errorf("%d: what was read for nothing is not counted: %d", left, j.entries)
		}
	}
}

// TestStopsInside: a process that leaves what is too much to the program looks at nothing more once it knows.
func TestStopsInside(t *testing.T) {
	c := newContainer(t, map[string]string{"etc/ld.so.conf": strings.Repeat("include /many/*.conf\n", 100)})
	c.library("driver/libx.so.1")
	if err := os.Mkdir(filepath.Join(c.root, "many"), 0o755); err != nil {
		t.Fatal(err)
	}
	const entries = 1000
	for i := range entries + 1 {
		if err := unix.Mknod(filepath.Join(c.root, "many", fmt.Sprint(i)), unix.S_IFREG|0o644, 0); err != nil {
			t.Fatal(err)
		}
	}
	j := c.job()
	j.most = ofInside
	j.most.allEntries = entries
	if took := allocated(func() { j.newCache([]string{"/driver"}) }); !j.large || took > 2<<20 {
		t.Errorf("%v, %d KiB", j.large, took>>10)
	}
}

// TestProfileBounds has a /dev that is too large to look through: no profile, and no error.
func TestProfileBounds(t *testing.T) {
	c := newContainer(t, map[string]string{"dev/null": "", "etc/x": ""})
	for i := range maxNodes {
		if err := unix.Mknod(filepath.Join(c.root, "dev", fmt.Sprint(i)), unix.S_IFREG|0o644, 0); err != nil {
			t.Fatal(err)
		}
	}
	if code, out := c.run("update-application-profile"); code != 0 || !strings.Contains(out, fmt.Sprintf("it has more than %d entries", maxNodes)) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestNamesBounds has a directory whose libraries' names take more memory than the directory.
func TestNamesBounds(t *testing.T) {
	c := newContainer(t, nil)
	c.library("lib/liba.so")
	dir := ""
	for len(c.root)+len(dir) < 3500 {
		dir += "/" + strings.Repeat("d", 200)
	}
	const links = 1000
	for i := range links {
		c.put(filepath.Join(c.root, dir, fmt.Sprintf("lib%d.so", i)), "-> /lib/liba.so")
	}
	if _, err := c.inside(nil, "", "update-ldcache", "--folder", dir); !errors.Is(err, ErrTooMuch) {
		t.Errorf("inside: %v", err)
	}
	j := c.job()
	j.most.texts = 1 << 20
	bytes := 0
	for range 2 {
		for _, e := range j.scan(dir, &linkerFiles{}) {
			bytes += len(e.name) + len(e.path)
		}
	}
	if bytes == 0 || bytes > j.most.texts || strings.Count(fmt.Sprint(j.log), "the rest is left out") != 1 {
		t.Errorf("the program: %d bytes, %v", bytes, j.log)
	}
}

// cancels ends a context at what is written to it.
type cancels struct{ cancel context.CancelCauseFunc }

func (c cancels) Write(b []byte) (int, error) {
	c.cancel(errors.New("given up"))
	return len(b), nil
}

// TestEndsInside: a hook ends with its context, also when it has begun, and writes nothing then.
func TestEndsInside(t *testing.T) {
	c := newContainer(t, map[string]string{"etc/ld.so.cache": "nonsense"})
	c.library("driver/libx.so.1")
	root, err := os.Open(c.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	before, in := c.files(), Inside{Root: root, Log: cancels{cancel}}
	if err := in.Run(ctx, []string{"update-ldcache", "--folder", "/driver"}); err == nil || !strings.Contains(err.Error(), "given up") {
		t.Error(err)
	}
	if diff := cmp.Diff(before, c.files()); diff != "" {
		t.Error(diff)
	}
}
