package direct

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/oci/bundle"
)

// TestPlain: what is mounted upon a file of the root that is known to be there is there, several times upon the same too; and
// where a directory is mounted above it, the file is another that is not known.
func TestPlain(t *testing.T) {
	s := testStarter(t)
	bind := func(text, dest string) specs.Mount {
		file := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return specs.Mount{Type: "bind", Source: file, Destination: dest, Options: []string{"bind", "ro"}}
	}
	known := t.TempDir()
	if err := os.MkdirAll(filepath.Join(known, "opt/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(known, "opt/lib", f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	volume := t.TempDir()
	if err := os.Symlink("/opt/lib/b", filepath.Join(volume, "c")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		mounts []specs.Mount
		want   string
	}{
		"in the root": {[]specs.Mount{bind("1", "/opt/lib/a"), bind("2", "/opt/lib/b"), bind("3", "/opt/lib/a")}, "3\n2\n"},
		"below a volume": {[]specs.Mount{
			{Type: "bind", Source: volume, Destination: "/opt/lib", Options: []string{"bind"}},
			bind("1", "/opt/lib/a"), bind("2", "/opt/lib/c"), // which is a link to b
		}, "1\n2\n"},
		"below a tmpfs": {[]specs.Mount{{Type: "tmpfs", Source: "tmpfs", Destination: "/opt"}, bind("1", "/opt/lib/a"), bind("2", "/opt/lib/b")}, "1\n2\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t, s, "cat /opt/lib/a /opt/lib/b", func(b *bundle.Bundle) {
				b.Root.Layers = append([]string{known}, b.Root.Layers...)
				b.Plain = map[string]bool{"/opt/lib/a": true, "/opt/lib/b": true, "/opt/lib/c": true}
				b.Spec.Mounts = append(b.Spec.Mounts, c.mounts...)
			})
			if got.stdout != c.want {
				t.Errorf("%v\nwant %q", got, c.want)
			}
		})
	}
}
