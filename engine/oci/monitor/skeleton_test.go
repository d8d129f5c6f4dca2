package monitor

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/wire"
)

func TestSkeleton(t *testing.T) {
	when := time.Unix(1_500_000_000, 0)
	for _, c := range []struct {
		name   string
		image  func(t *testing.T, root string)
		want   []string // paths of the skeleton
		same   bool     // no skeleton at all
		plain  bool     // files may be laid over those in /etc
		places []mountPoint
	}{
		{"empty", func(*testing.T, string) {}, []string{"dev", "etc", "etc/hostname", "etc/hosts", "etc/resolv.conf", "proc", "sys"}, false, true, nil},
		{"etc without files", func(t *testing.T, root string) {
			mkdir(t, filepath.Join(root, "etc"), 0o750, when)
			mkdir(t, filepath.Join(root, "proc"), 0o555, when)
		}, []string{"dev", "etc", "etc/hostname", "etc/hosts", "etc/resolv.conf", "sys"}, false, true, nil},
		{"etc is a link", func(t *testing.T, root string) {
			if err := os.Symlink("/nowhere", filepath.Join(root, "etc")); err != nil {
				t.Fatal(err)
			}
		}, []string{"dev", "proc", "sys"}, false, false, nil},
		{"etc has attributes", func(t *testing.T, root string) {
			mkdir(t, filepath.Join(root, "etc"), 0o755, when)
			if err := unix.Setxattr(filepath.Join(root, "etc"), "user.x", []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
		}, []string{"dev", "proc", "sys"}, false, false, nil},
		{"a file is a link", func(t *testing.T, root string) {
			mkdir(t, filepath.Join(root, "etc"), 0o755, when)
			for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
				if err := os.Symlink("../run/"+f, filepath.Join(root, "etc", f)); err != nil {
					t.Fatal(err)
				}
			}
		}, []string{"dev", "proc", "sys"}, false, false, nil},
		{"complete", func(t *testing.T, root string) {
			for _, d := range []string{"dev", "proc", "sys", "etc"} {
				mkdir(t, filepath.Join(root, d), 0o755, when)
			}
			for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
				if err := os.WriteFile(filepath.Join(root, "etc", f), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}, nil, true, true, nil},
		{"places of what is lent", func(t *testing.T, root string) {
			for _, d := range []string{"dev", "proc", "sys", "usr", "usr/lib", "usr/lib/there"} {
				mkdir(t, filepath.Join(root, d), 0o750, when)
			}
			if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
				t.Fatal(err)
			}
		}, []string{"etc", "etc/hostname", "etc/hosts", "etc/resolv.conf", "opt", "opt/firmware", "usr", "usr/lib", "usr/lib/deep", "usr/lib/deep/er", "usr/lib/deep/er/x.so"}, false, true, []mountPoint{
			{"/usr/lib/deep/er/x.so", false},
			{"/lib/y.so", false},
			{"/opt/firmware", true},
			{"/opt", false},
			{"/usr/lib/there", true},
			{"/dev/shm/z", false},
			{"/usr/line\nbreak", false},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Fatal("needs root: it mounts the image")
			}
			root := t.TempDir()
			c.image(t, root)
			s := &skeletons{dir: t.TempDir(), m: map[string]skeleton{}}
			var places strings.Builder
			for _, p := range c.places {
				wire.AddPlace(&places, p.path, p.dir)
			}
			sk, err := s.of([]string{root}, places.String())
			if err != nil {
				t.Fatal(err)
			}
			if got := sk.etc != nil; got != c.plain {
				t.Errorf("files may be laid over those of /etc: %v", got)
			}
			layers := sk.over([]string{root})
			if c.same {
				if !reflect.DeepEqual(layers, []string{root}) {
					t.Errorf("layers = %v; the image needs no skeleton", layers)
				}
				return
			}
			if len(layers) != 2 || layers[1] != root {
				t.Fatalf("layers = %v", layers)
			}
			var got []string
			files := map[string]bool{}
			err = filepath.WalkDir(layers[0], func(p string, e os.DirEntry, err error) error {
				if rel, rerr := filepath.Rel(layers[0], p); rerr == nil && rel != "." {
					got = append(got, rel)
					if e.Type().IsRegular() {
						files["/"+rel] = true
					}
				}
				return err
			})
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("skeleton = %v, %v; want %v", got, err, c.want)
			}
			if !reflect.DeepEqual(sk.plain.files(), files) {
				t.Errorf("its plain files are %v, and it has %v", sk.plain.files(), files)
			}
			again, err := s.of([]string{root}, places.String())
			if err != nil || again != sk {
				t.Errorf("a second time: %v, %v", again, err)
			}
			if st, err := os.Stat(filepath.Join(root, "etc")); err == nil && c.name == "etc without files" {
				own, err := os.Stat(filepath.Join(layers[0], "etc"))
				if err != nil || own.Mode() != st.Mode() {
					t.Errorf("etc is %v, in the image %v (%v)", own.Mode(), st.Mode(), err)
				}
			}
		})
	}
}

func mkdir(t *testing.T, dir string, mode os.FileMode, when time.Time) {
	t.Helper()
	if err := os.Mkdir(dir, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(dir, when, when); err != nil {
		t.Fatal(err)
	}
}
