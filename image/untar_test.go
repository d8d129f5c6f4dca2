package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// needRoot skips a test of what only root can do, such as giving files to others.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and whiteouts of trusted.overlay")
	}
}

// unpackInto unpacks an archive into dir/root, and returns that.
func unpackInto(t testing.TB, dir string, archive []byte) (string, layerRecord, error) {
	t.Helper()
	path := filepath.Join(dir, "root")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	rec, err := untar(t.Context(), bytes.NewReader(archive), root, false)
	if err == nil {
		checkCensus(t, path, rec)
	}
	return path, rec, err
}

// checkCensus checks that what was counted while unpacking is what a census after a power cut would find.
func checkCensus(t testing.TB, root string, rec layerRecord) {
	t.Helper()
	entries, size, err := census(root)
	if err != nil || entries != rec.Entries || size != rec.Bytes {
		t.Errorf("counted %d entries of %d bytes, and there are %d of %d; %v", rec.Entries, rec.Bytes, entries, size, err)
	}
}

// describe lists a tree, a line each: type, mode, owner, size or target, time, attributes.
func describe(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		fmt.Fprintf(&b, "/%s %s", name, describeStat(p, &st))
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first, ok := inodes[st.Ino]; ok {
				fmt.Fprintf(&b, " =/%s", first)
			} else {
				inodes[st.Ino] = name
			}
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func describeStat(p string, st *unix.Stat_t) string {
	owner := ""
	if st.Uid != 0 || st.Gid != 0 {
		owner = fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
	}
	perm := st.Mode & 0o7777
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		s := fmt.Sprintf("dir %o%s", perm, owner)
		var v [8]byte
		if n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", v[:]); err == nil && string(v[:n]) == "y" {
			s += " opaque"
		}
		return s
	case unix.S_IFREG:
		body, _ := os.ReadFile(p)
		return fmt.Sprintf("file %o%s %q", perm, owner, body)
	case unix.S_IFLNK:
		target, _ := os.Readlink(p)
		return fmt.Sprintf("link%s -> %s", owner, target)
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			return "whiteout"
		}
		return fmt.Sprintf("char %o%s %d/%d", perm, owner, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		return fmt.Sprintf("block %o%s %d/%d", perm, owner, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		return fmt.Sprintf("fifo %o%s", perm, owner)
	}
	return "?"
}

func with(e entry, change func(*tar.Header)) entry {
	change(&e.Header)
	return e
}

func TestUntar(t *testing.T) {
	needRoot(t)
	mode := func(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }
	owned := func(h *tar.Header) { h.Uid, h.Gid = 1000, 70000 }
	device := func(kind byte, major, minor int64) func(*tar.Header) {
		return func(h *tar.Header) { h.Typeflag, h.Devmajor, h.Devminor = kind, major, minor }
	}
	for _, c := range []struct {
		name    string
		entries []entry
		want    string
	}{
		{
			"plain",
			[]entry{dir("a/"), file("a/b", "x"), symlink("a/l", "/etc/passwd")},
			"/ dir 755\n/a dir 755\n/a/b file 644 \"x\"\n/a/l link -> /etc/passwd\n",
		},
		{"modes and owners", []entry{
			with(dir("d/"), mode(0o2700)), with(with(file("d/suid", "x"), mode(0o4755)), owned), with(file("d/none", ""), mode(0)),
			with(dir("t"), mode(0o1777)), with(symlink("l", "d"), owned), with(file("group", ""), mode(0o666)),
		}, "/ dir 755\n/d dir 2700\n/d/none file 0 \"\"\n/d/suid file 4755 1000:70000 \"x\"\n/group file 666 \"\"\n/l link 1000:70000 -> d\n/t dir 1777\n"},
		{"root entry", []entry{with(with(dir("./"), mode(0o711)), owned), file("./a", "")}, "/ dir 711 1000:70000\n/a file 644 \"\"\n"},
		{"implied directories", []entry{file("a/b/c", "x")}, "/ dir 755\n/a dir 755\n/a/b dir 755\n/a/b/c file 644 \"x\"\n"},
		{"implied, then named", []entry{file("a/c", "x"), with(dir("a/"), mode(0o700))}, "/ dir 755\n/a dir 700\n/a/c file 644 \"x\"\n"},
		{"file twice", []entry{file("a", "first and longer"), file("a", "last")}, "/ dir 755\n/a file 644 \"last\"\n"},
		{"file over link", []entry{file("a", "kept"), symlink("l", "a"), file("l", "x")}, "/ dir 755\n/a file 644 \"kept\"\n/l file 644 \"x\"\n"},
		{"file over hard link", []entry{file("a", "kept"), hardlink("b", "a"), file("b", "x")}, "/ dir 755\n/a file 644 \"kept\"\n/b file 644 \"x\"\n"},
		{"file over directory", []entry{dir("a/"), file("a/b/c", "x"), file("a", "y")}, "/ dir 755\n/a file 644 \"y\"\n"},
		{"directory over file", []entry{file("a", "y"), dir("a/"), file("a/b", "x")}, "/ dir 755\n/a dir 755\n/a/b file 644 \"x\"\n"},
		{"directory over link", []entry{dir("d"), symlink("a", "d"), dir("a/"), file("a/b", "x")}, "/ dir 755\n/a dir 755\n/a/b file 644 \"x\"\n/d dir 755\n"},
		{
			"link over directory with open parents",
			[]entry{file("a/b/c", "x"), dir("d/b"), symlink("a", "d"), file("a/b/c", "y")},
			"/ dir 755\n/a link -> d\n/d dir 755\n/d/b dir 755\n/d/b/c file 644 \"y\"\n",
		},
		{
			"link exchanged",
			[]entry{dir("d"), dir("e"), symlink("a", "d"), file("a/1", ""), symlink("a", "e"), file("a/2", "")},
			"/ dir 755\n/a link -> e\n/d dir 755\n/d/1 file 644 \"\"\n/e dir 755\n/e/2 file 644 \"\"\n",
		},
		{
			"through links within",
			[]entry{dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/x", "1"), symlink("usr/up", "../lib"), file("usr/up/y", "2"), symlink("abs", "/usr"), file("abs/z", "3")},
			"/ dir 755\n/abs link -> /usr\n/lib link -> usr/lib\n/usr dir 755\n/usr/lib dir 755\n/usr/lib/x file 644 \"1\"\n/usr/lib/y file 644 \"2\"\n/usr/up link -> ../lib\n/usr/z file 644 \"3\"\n",
		},
		{
			"hard links",
			[]entry{file("a", "x"), hardlink("b", "a"), hardlink("c", "/b"), hardlink("a", "a")},
			"/ dir 755\n/a file 644 \"x\"\n/b file 644 \"x\" =/a\n/c file 644 \"x\" =/a\n",
		},
		{"hard link to link", []entry{symlink("a", "/etc/passwd"), hardlink("b", "a")}, "/ dir 755\n/a link -> /etc/passwd\n/b link -> /etc/passwd =/a\n"},
		{"whiteouts", []entry{file("a/.wh.gone", ""), file(".wh.b", "")}, "/ dir 755\n/a dir 755\n/a/gone whiteout\n/b whiteout\n"},
		{"opaque", []entry{dir("a"), file("a/.wh..wh..opq", ""), file("a/b", "x")}, "/ dir 755\n/a dir 755 opaque\n/a/b file 644 \"x\"\n"},
		{"opaque before its directory", []entry{file("a/.wh..wh..opq", ""), dir("a"), file("a/b", "x")}, "/ dir 755\n/a dir 755 opaque\n/a/b file 644 \"x\"\n"},
		{"whiteout, then file", []entry{file(".wh.a", ""), file("a", "x")}, "/ dir 755\n/a file 644 \"x\"\n"},
		{"file, then whiteout", []entry{file("a", "x"), file(".wh.a", "")}, "/ dir 755\n/a file 644 \"x\"\n"},
		{"whiteout, then directory", []entry{file(".wh.a", ""), dir("a/"), file("a/b", "")}, "/ dir 755\n/a dir 755 opaque\n/a/b file 644 \"\"\n"},
		{"directory, then whiteout", []entry{dir("a/"), file(".wh.a", "")}, "/ dir 755\n/a dir 755 opaque\n"},
		{"whiteout, then implied directory", []entry{file(".wh.a", ""), file("a/b", "")}, "/ dir 755\n/a dir 755 opaque\n/a/b file 644 \"\"\n"},
		{"whiteout twice", []entry{file(".wh.a", ""), file(".wh.a", "")}, "/ dir 755\n/a whiteout\n"},
		{"whiteout as overlay writes it", []entry{with(file("a", ""), device(tar.TypeChar, 0, 0))}, "/ dir 755\n/a whiteout\n"},
		{"bookkeeping of aufs", []entry{dir(".wh..wh.plnk"), file(".wh..wh.plnk/1", ""), file(".wh..wh.aufs", ""), file("a", "")}, "/ dir 755\n/a file 644 \"\"\n"},
		{"devices", []entry{
			with(with(file("null", ""), device(tar.TypeChar, 1, 3)), mode(0o666)), with(file("sda", ""), device(tar.TypeBlock, 8, 0)), with(file("pipe", ""), device(tar.TypeFifo, 0, 0)),
		}, "/ dir 755\n/null char 666 1/3\n/pipe fifo 644\n/sda block 644 8/0\n"},
		{"absolute names", []entry{dir("/a"), file("//a/b", "x")}, "/ dir 755\n/a dir 755\n/a/b file 644 \"x\"\n"},
		{"long names", []entry{file(strings.Repeat("d/", 100)+strings.Repeat("n", 255), "x")}, func() string {
			s, p := "/ dir 755\n", ""
			for range 100 {
				p += "/d"
				s += p + " dir 755\n"
			}
			return s + p + "/" + strings.Repeat("n", 255) + " file 644 \"x\"\n"
		}()},
		{"dots within", []entry{dir("a"), file("a/../b/./c", "x")}, "/ dir 755\n/a dir 755\n/b dir 755\n/b/c file 644 \"x\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, _, err := unpackInto(t, t.TempDir(), archive(t, c.entries...))
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(t, root); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// TestUntarHostile unpacks archives that want out. Beside the root lies a directory that must stay as it is.
func TestUntarHostile(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name    string
		entries []entry
		invalid bool // refused; else unpacked within the root
	}{
		{"dot dot", []entry{file("../outside/x", "")}, true},
		{"dot dot deep", []entry{file("a/b/../../../outside/x", "")}, true},
		{"absolute dot dot", []entry{file("/../outside/x", "")}, true},
		{"dot dot itself", []entry{dir("..")}, true},
		{"link up, then through it", []entry{symlink("l", "../outside"), file("l/x", "")}, false},
		{"absolute link, then through it", []entry{symlink("l", "OUTSIDE"), file("l/x", "")}, false},
		{"chain of links", []entry{symlink("a", "b"), symlink("b", "c"), symlink("c", "../../../../../../../../../OUTSIDE"), file("a/x", "")}, false},
		{"link to itself", []entry{symlink("a", "a"), file("a/x", "")}, true},
		{"links in a circle", []entry{symlink("a", "b/c"), symlink("b", "a"), file("a/x", "")}, true},
		{"link that grows", []entry{symlink("a", strings.Repeat("a/", 2000)), file("a/x", "")}, true},
		{"over a link that leads out", []entry{symlink("l", "OUTSIDE/secret"), file("l", "written")}, false},
		{"directory over a link that leads out", []entry{symlink("l", "OUTSIDE"), with(dir("l"), func(h *tar.Header) { h.Mode = 0o777 })}, false},
		{"hard link out", []entry{hardlink("l", "../outside/secret")}, true},
		{"hard link by absolute name", []entry{hardlink("l", "OUTSIDE/secret")}, false},
		{"hard link through a link", []entry{symlink("d", "OUTSIDE"), hardlink("l", "d/secret")}, false},
		{"hard link to a link that leads out, then write", []entry{symlink("s", "OUTSIDE/secret"), hardlink("l", "s"), file("l", "written")}, false},
		{"hard link to the root", []entry{hardlink("l", "/")}, true},
		{"hard link to a directory", []entry{dir("d"), hardlink("l", "d")}, true},
		{"hard link to a whiteout", []entry{file(".wh.d", ""), hardlink("l", "d")}, true},
		{"parent exchanged for a link", []entry{dir("d"), file("d/x", ""), symlink("d", "OUTSIDE"), file("d/y", ""), with(dir("d"), func(h *tar.Header) { h.Mode = 0o700 })}, false},
		{"whiteout of the parent", []entry{file("a/.wh...", "")}, true},
		{"whiteout of itself", []entry{file("a/.wh..", "")}, true},
		{"whiteout of nothing", []entry{file("a/.wh.", "")}, true},
		{"whiteout as directory", []entry{file(".wh.d/x", "")}, true},
		{"empty whiteout as directory", []entry{dir(".wh./")}, true},
		{"whiteout through a link", []entry{symlink("l", "OUTSIDE"), file("l/.wh.secret", "")}, false},
		{"opaque through a link", []entry{symlink("l", "OUTSIDE"), file("l/.wh..wh..opq", "")}, false},
		{"device through a link", []entry{symlink("l", "OUTSIDE"), with(file("l/dev", ""), func(h *tar.Header) { h.Typeflag, h.Devmajor = tar.TypeChar, 1 })}, false},
		{"device number out of range", []entry{with(file("dev", ""), func(h *tar.Header) { h.Typeflag, h.Devmajor = tar.TypeBlock, 1<<20 })}, true},
		{"owner that means none", []entry{with(file("a", ""), func(h *tar.Header) { h.Uid = 1<<32 - 1 })}, true},
		{"owner beyond", []entry{with(file("a", ""), func(h *tar.Header) { h.Gid = 1 << 40 })}, true},
		{"file as parent", []entry{file("a", ""), file("a/b", "")}, true},
		{"root as file", []entry{file(".", "")}, true},
		{"root as link", []entry{symlink("./", "OUTSIDE")}, true},
		{"name too long", []entry{file(strings.Repeat("n", 256), "")}, true},
		{"path too long", []entry{file(strings.Repeat("nn/", 2000)+"x", "")}, true},
		{"unknown type", []entry{with(file("a", ""), func(h *tar.Header) { h.Typeflag = 'Z' })}, true},
		{"attributes that steer overlay", []entry{with(dir("a"), func(h *tar.Header) {
			h.PAXRecords = map[string]string{xattrRecord + "trusted.overlay.redirect": "/x", xattrRecord + "user.overlay.opaque": "y", xattrRecord + "trusted.overlay.opaque": "y"}
		})}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			outside := filepath.Join(dir, "outside")
			if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600)); err != nil {
				t.Fatal(err)
			}
			var before unix.Stat_t
			if err := unix.Stat(outside, &before); err != nil {
				t.Fatal(err)
			}
			for i := range c.entries {
				c.entries[i].Linkname = strings.ReplaceAll(c.entries[i].Linkname, "OUTSIDE", outside)
			}
			root, _, err := unpackInto(t, dir, archive(t, c.entries...))
			if c.invalid != errors.Is(err, berth.ErrInvalid) || !c.invalid && err != nil {
				t.Errorf("error %v", err)
			}
			if got, want := describe(t, outside), "/ dir 755\n/secret file 600 \"s\"\n"; got != want {
				t.Errorf("outside is now\n%s", got)
			}
			var after, secret unix.Stat_t
			if err := errors.Join(unix.Stat(outside, &after), unix.Stat(filepath.Join(outside, "secret"), &secret)); err != nil || after.Ctim != before.Ctim || secret.Nlink != 1 {
				t.Errorf("outside was touched: %+v, was %+v; %v", after, before, err)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
				t.Errorf("beside the root: %v, %v", entries, err)
			}
			if strings.Contains(describe(t, root), "opaque\n") && strings.Contains(c.name, "steer") {
				t.Error("an attribute of overlay came through")
			}
		})
	}
}

func TestUntarAttributes(t *testing.T) {
	needRoot(t)
	when := time.Unix(1_600_000_000, 123_456_789)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	e := with(file("d/ping", "x"), func(h *tar.Header) {
		h.Format, h.ModTime, h.Uid = tar.FormatPAX, when, 7
		h.PAXRecords = map[string]string{xattrRecord + "security.capability": capability, xattrRecord + "user.note": "n", xattrRecord + "security.selinux": "no"}
	})
	d := with(dir("d"), func(h *tar.Header) { h.ModTime = when.Add(time.Hour) })
	root, _, err := unpackInto(t, t.TempDir(), archive(t, d, e, file("d/later", "")))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "d/ping")
	for name, want := range map[string]string{"security.capability": capability, "user.note": "n", "security.selinux": ""} {
		var v [64]byte
		n, _ := unix.Lgetxattr(path, name, v[:])
		equal(t, string(v[:max(n, 0)]), want)
	}
	for p, want := range map[string]time.Time{path: when, filepath.Join(root, "d"): when.Add(time.Hour).Truncate(time.Second), root: time.Unix(0, 0)} {
		st, err := os.Stat(p)
		if err != nil || !st.ModTime().Equal(want) {
			t.Errorf("%s: time %v, %v; want %v", p, st.ModTime(), err, want)
		}
	}
}

// A directory's access list for what is made in it is not that of what an archive has there.
func TestUntarInherits(t *testing.T) {
	needRoot(t)
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xd2\x04\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" +
		"\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
	d := with(dir("d"), func(h *tar.Header) {
		h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{xattrRecord + aclDefault: acl}
	})
	root, _, err := unpackInto(t, t.TempDir(), archive(t, d, dir("d/e"), file("d/f", "x")))
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{"d " + aclDefault: acl, "d/e " + aclDefault: "", "d/f system.posix_acl_access": ""} {
		p, name, _ := strings.Cut(at, " ")
		var v [64]byte
		n, _ := unix.Lgetxattr(filepath.Join(root, p), name, v[:])
		if got := string(v[:max(n, 0)]); got != want {
			t.Errorf("%s: %q, want %q", at, got, want)
		}
	}
}

// TestUntarSparse unpacks a file of 1 GiB with 512 bytes of data at its end.
func TestUntarSparse(t *testing.T) {
	const size = 1 << 30
	data := bytes.Repeat([]byte{'x'}, 512)
	root, _, err := unpackInto(t, t.TempDir(), sparseArchive("sparse", size, data))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(root, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != size || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, %d blocks, %v", st.Size, st.Blocks, err)
	}
	end := make([]byte, 513)
	if _, err := f.ReadAt(end, size-513); err != nil || !bytes.Equal(end, append([]byte{0}, data...)) {
		t.Errorf("the end is %q…, %v", end[:8], err)
	}
}

func TestUntarTruncated(t *testing.T) {
	whole := archive(t, dir("a"), file("a/b", strings.Repeat("x", 3000)))
	for _, n := range []int{100, 513, 1024 + 100, len(whole) - 1024 - 600} {
		_, _, err := unpackInto(t, t.TempDir(), whole[:n])
		if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "unexpected EOF") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// TestUntarMemory has a layer that would take more and more memory: it is refused at the bound, whatever it is
// that takes the memory, and directories that are named again take no more.
func TestUntarMemory(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("n", 200)
	for _, c := range []struct {
		name string
		next func(i int) entry
	}{
		{"directories", func(i int) entry { return dir(fmt.Sprint(long, i)) }},
		{"implied directories", func(i int) entry { return file(fmt.Sprint(long, i, "/f"), "") }},
		{"hard links", func(i int) entry { return hardlink(fmt.Sprint("l", i), long) }},
	} {
		root, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		u := newUnpacker(root, false)
		defer u.tree.close()
		u.kept = keptMax - 1000 // as if there had been many
		for i := range 100 {
			e := dir("again")
			if err := u.entry(t.Context(), &e.Header, strings.NewReader("")); err != nil {
				t.Fatalf("%s: a directory named for the %d. time: %v", c.name, i, err)
			}
		}
		for i := 0; ; i++ {
			e := c.next(i)
			err := u.entry(t.Context(), &e.Header, strings.NewReader(""))
			if errors.Is(err, berth.ErrInvalid) && strings.Contains(err.Error(), "256 MiB of their names") && i > 0 {
				break
			}
			if err != nil || i == 10 {
				t.Errorf("%s: %d: %v", c.name, i, err)
				break
			}
		}
	}
}

// TestUntarManyLinks unpacks many hard links to files of other layers, each to the one before.
func TestUntarManyLinks(t *testing.T) {
	entries := []entry{hardlink("0", "lower")}
	for i := range 30_000 {
		entries = append(entries, hardlink(fmt.Sprint(i+1), fmt.Sprint(i)))
	}
	_, rec, err := unpackInto(t, t.TempDir(), archive(t, entries...))
	if err != nil || len(rec.Links) != len(entries) || rec.Links[30_000] != (link{"30000", "lower"}) {
		t.Error(len(rec.Links), err)
	}
}

// TestUntarRecord checks what a layer says of itself.
func TestUntarRecord(t *testing.T) {
	needRoot(t)
	_, rec, err := unpackInto(t, t.TempDir(), archive(t,
		file("a/b/c", ""), dir("a"), file(".wh..wh..opq", ""),
		hardlink("a/l", "lower/file"), hardlink("m", "a/l"), // two links to a file that is not here
		hardlink("n", "lower/file"), file("n", "replaced"),
		hardlink("gone/l", "lower/file"), file("gone", ""),
	))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, rec, layerRecord{
		Entries: rec.Entries, Bytes: rec.Bytes, Opaque: true, Implied: []string{"a/b"},
		Links: []link{{"a/l", "lower/file"}, {"m", "lower/file"}},
	})
}

func FuzzUntar(f *testing.F) {
	f.Add(archive(f, dir("a"), file("a/b", "x"), symlink("l", "../.."), hardlink("h", "a/b"), file(".wh.x", "")))
	f.Add(archive(f, symlink("l", "../outside"), file("l/secret", "x"), file("a/.wh..wh..opq", "")))
	f.Add(archive(f, with(file("x", ""), func(h *tar.Header) {
		h.PAXRecords = map[string]string{xattrRecord + "user.a": "b"}
	})))
	f.Add([]byte("no archive"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		outside := filepath.Join(dir, "outside")
		if err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "root")
		root, err := os.OpenFile(path, os.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.Mkdir(path, 0o755); err == nil {
				root, err = os.Open(path)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		// A bound as a real layer has one: sparse headers can claim any size.
		rec, err := untar(t.Context(), io.LimitReader(bytes.NewReader(b), 1<<20), root, false)
		if err == nil {
			checkCensus(t, path, rec)
		}
		if err != nil && strings.Contains(err.Error(), "panic") {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
			t.Fatalf("beside the root: %v, %v", entries, err)
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
			t.Fatalf("outside: %v, %v", entries, err)
		}
	})
}
