package cli

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// newRegistry is a registry on loopback with the image good. It refuses to hand out what is named secret, and
// hands out wrong bytes for the layers of what is named broken.
func newRegistry(t *testing.T) string {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/secret/") && r.Method != http.MethodPut && r.Method != http.MethodPost && r.Method != http.MethodPatch {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/v2/broken/blobs/") && r.Method == http.MethodGet {
			rec := httptest.NewRecorder()
			inner.ServeHTTP(rec, r)
			body := rec.Body.Bytes()
			if !bytes.HasPrefix(body, []byte("{")) && len(body) > 0 {
				body[len(body)/2] ^= 0xff
			}
			_, _ = w.Write(body)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	archive, err := busybox("of-the-registry") // no layer that is here already
	if err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/good:1", layer, v1.ConfigFile{OS: "linux", Architecture: "amd64", Config: v1.Config{Cmd: []string{"echo", "hello"}}})
	push(t, host+"/other:1", layer, v1.ConfigFile{OS: "linux", Architecture: "s390x"})
	random, err := random.Layer(4096, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/broken:1", random, v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	return host
}

func push(t *testing.T, ref string, layer v1.Layer, config v1.ConfigFile) {
	t.Helper()
	img, err := mutate.ConfigFile(mutate.MediaType(empty(t), "application/vnd.docker.distribution.manifest.v2+json"), &config)
	if err == nil {
		img, err = mutate.AppendLayers(img, layer)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func empty(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPull(t *testing.T) {
	b := newBench(t)
	host := newRegistry(t)
	out, code := b.output("run", host+"/good:1")
	if code != 0 || !strings.HasPrefix(out, "berth: pulling "+host+"/good:1\nberth: pulled ") || !strings.HasSuffix(out, "\nhello\n") {
		t.Errorf("exit code %d, %s", code, out)
	}
	if out, code := b.output("run", "--quiet", "--pull", "always", host+"/good:1"); code != 0 || out != "hello\n" {
		t.Errorf("quiet: exit code %d, %s", code, out)
	}
	if out, code := b.output("image", "pull", "--progress", "none", host+"/good:1"); code != 0 || !strings.HasPrefix(out, host+"/good:1@sha256:") || strings.Count(out, "\n") != 1 {
		t.Errorf("image pull: exit code %d, %s", code, out)
	}
}

// TestPullRefusals holds each to one line, its exit code, and nothing left behind.
func TestPullRefusals(t *testing.T) {
	b := newBench(t)
	host := newRegistry(t)
	archive, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "cut.tar"), archive[:len(archive)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"no such image", []string{"run", host + "/nothing:1", "true"}, 125, []string{"berth: ", host + "/nothing:1", "not found"}},
		{"no such tag", []string{"run", host + "/good:2", "true"}, 125, []string{"berth: ", host + "/good:2", "not found"}},
		{"no access", []string{"run", host + "/secret:1", "true"}, 125, []string{"berth: ", host + "/secret:1", "denied"}},
		{"not for this platform", []string{"run", "--platform", "linux/arm64", host + "/other:1", "true"}, 125, []string{"berth: ", host + "/other:1", "linux/arm64"}},
		{"digest mismatch", []string{"run", host + "/broken:1", "true"}, 125, []string{"berth: ", host + "/broken:1", "sha256:"}},
		{"corrupt archive", []string{"image", "import", "cut.tar", "cut"}, 2, []string{"berth: ", "cut", "corrupt"}},
		{"pulled alone", []string{"image", "pull", "--quiet", host + "/good:2"}, 3, []string{"berth: ", host + "/good:2", "not found"}},
		{"pulled alone, no access", []string{"image", "pull", "--quiet", host + "/secret:1"}, 3, []string{"berth: ", "denied"}},
		{"nobody listens", []string{"image", "pull", "--quiet", "127.0.0.1:1/x"}, 5, []string{"berth: ", "127.0.0.1:1", "unavailable"}},
		{"SIF", []string{"run", "x.sif", "true"}, 125, []string{"berth: ", "x.sif"}},
		{"library", []string{"run", "library://a/b", "true"}, 125, []string{"berth: ", "library://"}},
		{"bad reference", []string{"run", "x/UPPER", "true"}, 125, []string{"berth: ", "x/UPPER", "invalid"}},
	} {
		out, code := b.output(c.args...)
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		last := lines[len(lines)-1]
		for _, s := range c.says {
			if code != c.code || !strings.Contains(last, s) {
				t.Errorf("%s: exit code %d, want %d; %q lacks %q", c.name, code, c.code, last, s)
			}
		}
		if len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[0], "berth: pulling ") {
			t.Errorf("%s: more than one line: %s", c.name, out)
		}
	}
	b.clean()
	if out, _ := b.output("image", "ls", "-q"); strings.Count(out, "\n") != 1 {
		t.Errorf("images are left: %s", out)
	}
}

// TestLoad loads what docker save writes.
func TestLoad(t *testing.T) {
	b := newBench(t)
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("some/thing:3")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(b.dir, "saved.tar"), tag, img); err != nil {
		t.Fatal(err)
	}
	out, code := b.output("image", "load", "--quiet", "saved.tar")
	if code != 0 || out != "docker.io/some/thing:3\n" {
		t.Errorf("exit code %d, %q", code, out)
	}
	cmd := b.berth("image", "load", "--quiet", "--name", "named:1", "-")
	saved, err := os.Open(filepath.Join(b.dir, "saved.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = saved.Close() }()
	cmd.Stdin = saved
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "docker.io/library/named:1\n" {
		t.Errorf("%q, %v", out, err)
	}
	var odd bytes.Buffer
	w := tar.NewWriter(&odd)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "odd.tar"), odd.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := b.output("image", "load", "odd.tar"); code != 2 || strings.Count(out, "\n") != 1 {
		t.Errorf("an archive of nothing: exit code %d, %q", code, out)
	}
}
