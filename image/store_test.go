package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	registrytest "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-project/berth"
)

// newStore opens a store that is quick to give up, and closes it with the test.
func newStore(t *testing.T, change ...func(*Options)) *Store {
	t.Helper()
	opts := Options{
		Dir: filepath.Join(t.TempDir(), "images"), Keychain: authn.NewMultiKeychain(),
		Backoff: time.Millisecond, Stall: 5 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&opts)
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(filepath.Join(opts.Dir, "tmp"))
		if err != nil || len(left) > 0 {
			t.Errorf("left in tmp: %v, %v", left, err)
		}
	})
	return s
}

// entry is an entry of a test archive.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}, body}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeDir}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Linkname: target, Mode: 0o777, Typeflag: tar.TypeSymlink}, ""}
}

func hardlink(name, target string) entry {
	return entry{tar.Header{Name: name, Linkname: target, Mode: 0o644, Typeflag: tar.TypeLink}, ""}
}

// archive writes entries as a tar archive.
func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layer makes a gzip layer of entries.
func layer(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	b := archive(t, entries...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// newImage makes an image for linux/amd64 of layers, lowest first.
func newImage(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	c.Config = v1.Config{Env: []string{"A=1"}, Cmd: []string{"sh"}, Volumes: map[string]struct{}{"/v": {}, "/a": {}}}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// serve runs a registry on loopback, behind wrap where that is given. It returns its host.
func serve(t testing.TB, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := serveHandler(t)
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// serveHandler is a registry in memory.
func serveHandler(testing.TB) http.Handler {
	return registrytest.New(registrytest.Logger(discardLog()))
}

// push puts an image into a registry.
func push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
}

func amd64(ref string) berth.ImageRequest {
	return berth.ImageRequest{Ref: ref, Platform: "linux/amd64"}
}

func TestPull(t *testing.T) {
	host := serve(t, nil)
	img := newImage(t, layer(t, dir("etc/"), file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"), file("gone", "x")),
		layer(t, file(".wh.gone", ""), symlink("passwd", "etc/passwd")))
	push(t, host+"/some/img:latest", img)
	s := newStore(t)
	got, err := s.Image(t.Context(), amd64(host+"/some/img"))
	if err != nil {
		t.Fatal(err)
	}
	id, _ := img.ConfigName()
	digest, _ := img.Digest()
	want := berth.Image{
		Ref: host + "/some/img:latest", ID: id.String(), Digest: digest.String(),
		Config: berth.ImageConfig{Env: []string{"A=1"}, Cmd: []string{"sh"}, Volumes: []string{"/a", "/v"}, OS: "linux", Architecture: "amd64"},
	}
	equal(t, got, want)
	layers, err := s.Layers(got.ID)
	if err != nil || len(layers) != 2 {
		t.Fatal(layers, err)
	}
	for name, want := range map[string]string{"/etc/passwd": "root:x:0:0::/root:/bin/sh\n", "passwd": "root:x:0:0::/root:/bin/sh\n", "gone": "not found"} {
		b, err := s.Lookup(got.ID, name)
		if errors.Is(err, berth.ErrNotFound) {
			b = []byte("not found")
		} else if err != nil {
			t.Error(err)
		}
		equal(t, string(b), want)
	}
}

func TestImport(t *testing.T) {
	s := newStore(t)
	img, err := s.Import(context.Background(), bytes.NewReader(archive(t, dir("bin/"), file("bin/sh", "#!"))), "base", ImportOptions{Config: berth.ImageConfig{Cmd: []string{"sh"}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Image(t.Context(), berth.ImageRequest{Ref: "base", Policy: berth.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, img)
}
