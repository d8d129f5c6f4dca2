package direct

import (
	"os"
	"path"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// FuzzTarget builds links as an image could hold them, and checks that a mount point is found where the kernel
// finds it (openat2 with RESOLVE_IN_ROOT), with everything that was made inside the root.
func FuzzTarget(f *testing.F) {
	f.Add("a>b b>/c/../d d", "/a/x", true)
	f.Add("a>../../../.. e>a/e2", "/e/y/../z", false)
	f.Add("l>l", "/l", true)
	f.Add("a>/ b>a/a/a/.", "/b/./b/../q", true)
	f.Add("d>dangling/x", "/d", false)
	f.Add("0", "1/", false)
	f.Fuzz(func(t *testing.T, tree, name string, dir bool) {
		if len(tree) > 200 || len(name) > 200 || strings.ContainsAny(tree+name, "\x00") {
			t.Skip()
		}
		outside := t.TempDir()
		root := outside + "/root"
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		image, err := os.OpenRoot(root) // which lets nothing out
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		for entry := range strings.FieldsSeq(tree) {
			from, to, link := strings.Cut(entry, ">")
			from = relative(from)
			_ = image.MkdirAll(path.Dir(from), 0o755)
			if link {
				_ = image.Symlink(to, from)
			} else {
				_ = image.Mkdir(from, 0o755)
			}
		}
		name = "/" + name
		before := listing(t, outside)
		fd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(fd) }()
		b := new(builders).take()
		v := &view{root: fd, owner: -1, group: -1, b: b}
		defer v.forget()
		at, _, err := v.target(name, dir)
		siblings(t, v, name)
		if after := listing(t, outside); after != before {
			t.Fatalf("something changed outside the root: %s, before %s", after, before)
		}
		if err != nil {
			return
		}
		if !path.IsAbs(at) || path.Clean(at) != at {
			t.Fatalf("%q is not canonical", at)
		}
		rel := strings.TrimPrefix(at, "/")
		if rel == "" {
			rel = "."
		}
		got, err := unix.Openat2(fd, rel, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			t.Fatalf("%s is %s, which has links or is not there: %v", name, at, err)
		}
		defer func() { _ = unix.Close(got) }()
		want, err := unix.Openat2(fd, name, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT})
		if err != nil {
			if strings.HasSuffix(strings.TrimRight(name, "/."), "..") || !dir {
				return // a file is what the path names, with a slash behind it or without
			}
			t.Fatalf("the kernel does not find %s: %v", name, err)
		}
		defer func() { _ = unix.Close(want) }()
		var g, w unix.Stat_t
		if unix.Fstat(got, &g) != nil || unix.Fstat(want, &w) != nil || g.Ino != w.Ino {
			t.Fatalf("%s is %s, and the kernel finds another file", name, at)
		}
	})
}

// siblings: a path in the directory of the last one leads to where it does without that.
func siblings(t *testing.T, v *view, name string) {
	t.Helper()
	above, _ := path.Split(name)
	for _, base := range []string{"sibling", "a", "l", "..", ".", ""} {
		fresh := &view{root: v.root, owner: -1, group: -1, b: v.b}
		want, _, werr := fresh.target(above+base, true)
		fresh.forget()
		got, _, err := v.target(above+base, true)
		if got != want || (err == nil) != (werr == nil) {
			t.Fatalf("%q after %q: %q, %v; on its own %q, %v", above+base, name, got, err, want, werr)
		}
	}
}

// listing is what lies in dir.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// FuzzMountOptions checks that options are either refused or taken whole, and never bring what a file system
// would read as several options.
func FuzzMountOptions(f *testing.F) {
	f.Add("tmpfs", "size=1m")
	f.Add("bind", "rro")
	f.Add("proc", "hidepid=2")
	f.Add("tmpfs", "mode=1777,size=1")
	f.Fuzz(func(t *testing.T, fsType, option string) {
		o, err := parseMount(&specs.Mount{Type: fsType, Source: "/x", Destination: "/y", Options: []string{option}})
		if err != nil {
			return
		}
		for _, fs := range o.fs {
			if strings.ContainsAny(fs.key+fs.value, ",\x00") || len(fs.value) > 255 {
				t.Errorf("%q gives %q", option, fs)
			}
		}
		if o.set&o.clear&^unix.MOUNT_ATTR__ATIME != 0 {
			t.Errorf("%q sets and clears %#x", option, o.set&o.clear)
		}
	})
}

// FuzzSysctl checks that no key leads out of /proc/sys.
func FuzzSysctl(f *testing.F) {
	for _, k := range []string{"net.ipv4.conf.eth0/1.x", "kernel/shmmax", "net/../../x", "net..x"} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, key string) {
		name, err := sysctlPath(key)
		if err != nil {
			return
		}
		if path.Clean("/"+name) != "/"+name {
			t.Errorf("%q is %q", key, name)
		}
	})
}
