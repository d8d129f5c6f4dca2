package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// dockerArchive writes images as `docker save` does.
func dockerArchive(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "images.tar")
	refs := map[name.Reference]v1.Image{}
	for n, img := range images {
		r, err := name.ParseReference(n)
		if err != nil {
			t.Fatal(err)
		}
		refs[r] = img
	}
	if err := tarball.MultiRefWriteToFile(path, refs); err != nil {
		t.Fatal(err)
	}
	return path
}

// layoutOf writes images as an OCI layout, each with the annotations given.
func layoutOf(t testing.TB, images ...mutate.IndexAddendum) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layout")
	if _, err := layout.Write(path, mutate.AppendManifests(empty.Index, images...)); err != nil {
		t.Fatal(err)
	}
	return path
}

func named(img v1.Image, key, value string) mutate.IndexAddendum {
	return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Annotations: map[string]string{key: value}}}
}

// tarOf packs a directory.
func tarOf(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func zipped(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path += ".gz"
	if err := os.WriteFile(path, z.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	img := newImage(t, layer(t, file("a", "1")), layer(t, file("b", "2")))
	id, _ := img.ConfigName()
	digest, _ := img.Digest()
	plain := layoutOf(t, mutate.IndexAddendum{Add: img})
	byTag := layoutOf(t, named(img, annotationRef, "1.0"))
	full := layoutOf(t, named(img, annotationRef, "example.org/x:1.0"))
	containerd := layoutOf(t, named(img, annotationName, "docker.io/library/y:2"))
	docker := dockerArchive(t, map[string]v1.Image{"z:3": img})
	for _, c := range []struct {
		name, path string
		opts       LoadOptions
		want       []string // Ref and Digest of each
	}{
		{"docker archive", docker, LoadOptions{}, []string{"docker.io/library/z:3", ""}},
		{"docker archive, gzip", zipped(t, docker), LoadOptions{}, []string{"docker.io/library/z:3", ""}},
		{"docker archive, renamed", docker, LoadOptions{Name: "q"}, []string{"docker.io/library/q:latest", ""}},
		{"layout", plain, LoadOptions{}, []string{id.String(), digest.String()}},
		{"layout, tag only", byTag, LoadOptions{}, []string{id.String(), digest.String()}},
		{"layout, named", full, LoadOptions{}, []string{"example.org/x:1.0", digest.String()}},
		{"layout of containerd", containerd, LoadOptions{}, []string{"docker.io/library/y:2", digest.String()}},
		{"layout, by name", byTag, LoadOptions{Name: "a/b:c"}, []string{"docker.io/a/b:c", digest.String()}},
		{"OCI archive", tarOf(t, full), LoadOptions{}, []string{"example.org/x:1.0", digest.String()}},
		{"OCI archive, gzip", zipped(t, tarOf(t, full)), LoadOptions{}, []string{"example.org/x:1.0", digest.String()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			images, err := s.Load(t.Context(), c.path, c.opts)
			if err != nil || len(images) != 1 {
				t.Fatal(images, err)
			}
			equal(t, []string{images[0].Ref, images[0].Digest, images[0].ID}, append(c.want, id.String()))
			equal(t, images[0].Config.Cmd, []string{"sh"})
			for name, want := range map[string]string{"a": "1", "b": "2"} {
				if got, err := s.Lookup(images[0].ID, name); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
			again, err := s.Image(t.Context(), berth.ImageRequest{Ref: images[0].Ref, Platform: "linux/amd64", Policy: berth.PullNever})
			if err != nil {
				t.Fatal(err)
			}
			equal(t, again, images[0])
		})
	}
}

// TestLoadDocker25 loads what `docker save` writes since version 25: an OCI layout with docker's manifest beside.
func TestLoadDocker25(t *testing.T) {
	img := newImage(t, layer(t, file("a", "1")))
	dir := layoutOf(t, mutate.IndexAddendum{Add: img})
	id, _ := img.ConfigName()
	l, _ := img.Layers()
	digest, _ := l[0].Digest()
	manifest := `[{"Config":"blobs/sha256/` + id.Hex + `","RepoTags":["z:3"],"Layers":["blobs/sha256/` + digest.Hex + `"]}]`
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	images, err := s.Load(t.Context(), tarOf(t, dir), LoadOptions{})
	if err != nil || len(images) != 1 || images[0].Ref != "docker.io/library/z:3" || images[0].ID != id.String() {
		t.Fatal(images, err)
	}
	blob := filepath.Join(dir, "blobs/sha256", digest.Hex)
	if err := os.WriteFile(blob, gzipOf(t, archive(t, file("a", "2"))), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newStore(t).Load(t.Context(), tarOf(t, dir), LoadOptions{}); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "layer digest mismatch") {
		t.Error(err)
	}
}

func TestLoadReader(t *testing.T) {
	path := dockerArchive(t, map[string]v1.Image{"z:3": newImage(t, layer(t, file("a", "1")))})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	images, err := newStore(t).LoadReader(t.Context(), io.MultiReader(f), LoadOptions{})
	if err != nil || len(images) != 1 || images[0].Ref != "docker.io/library/z:3" {
		t.Error(images, err)
	}

	// A named pipe, as a shell makes it for <(…).
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() {
		b, err := os.ReadFile(path)
		wrote <- errors.Join(err, os.WriteFile(pipe, b, 0))
	}()
	images, err = newStore(t).Load(t.Context(), pipe, LoadOptions{})
	if err != nil || len(images) != 1 || images[0].Ref != "docker.io/library/z:3" {
		t.Error(images, err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

func TestLoadSeveral(t *testing.T) {
	a, b := newImage(t, layer(t, file("a", "1"))), newImage(t, layer(t, file("b", "2")))
	path := dockerArchive(t, map[string]v1.Image{"a:1": a, "b:1": b})
	s := newStore(t)
	images, err := s.Load(t.Context(), path, LoadOptions{})
	if err != nil || len(images) != 2 {
		t.Fatal(images, err)
	}
	if _, err := s.Load(t.Context(), path, LoadOptions{Name: "c"}); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "2 images") {
		t.Error(err)
	}
}

func TestLoadPlatforms(t *testing.T) {
	var adds []mutate.IndexAddendum
	ids := map[string]string{}
	for _, arch := range []string{"amd64", "arm64"} {
		img := newImage(t, layer(t, file("arch", arch)))
		c, _ := img.ConfigFile()
		c = c.DeepCopy()
		c.Architecture = arch
		img, err := mutate.ConfigFile(img, c)
		if err != nil {
			t.Fatal(err)
		}
		id, _ := img.ConfigName()
		ids[arch] = id.String()
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	path := layoutOf(t, mutate.IndexAddendum{Add: mutate.AppendManifests(empty.Index, adds...)})
	for _, arch := range []string{"amd64", "arm64"} {
		images, err := newStore(t).Load(t.Context(), path, LoadOptions{Platform: "linux/" + arch})
		if err != nil || len(images) != 1 || images[0].ID != ids[arch] {
			t.Error(images, err)
		}
	}
	if _, err := newStore(t).Load(t.Context(), path, LoadOptions{Platform: "linux/s390x"}); !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), "there is: linux/amd64, linux/arm64") {
		t.Error(err)
	}
}

func TestLoadErrors(t *testing.T) {
	img := newImage(t, noise(t, 20<<10))
	docker := dockerArchive(t, map[string]v1.Image{"z:3": img})
	whole, err := os.ReadFile(docker)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	zip, err := os.ReadFile(zipped(t, docker))
	if err != nil {
		t.Fatal(err)
	}
	flipped := layoutOf(t, mutate.IndexAddendum{Add: img})
	l, _ := img.Layers()
	digest, _ := l[0].Digest()
	blob := filepath.Join(flipped, "blobs/sha256", digest.Hex)
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(blob, b, 0o600); err != nil {
		t.Fatal(err)
	}
	waiting := layoutOf(t, mutate.IndexAddendum{Add: img})
	if blob := filepath.Join(waiting, "blobs/sha256", digest.Hex); errors.Join(os.Remove(blob), unix.Mkfifo(blob, 0o600)) != nil {
		t.Fatal("no named pipe is made")
	}
	lacking := layoutOf(t, mutate.IndexAddendum{Add: img})
	if err := os.Remove(filepath.Join(lacking, "blobs/sha256", digest.Hex)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		kind       error
		text       string
	}{
		{"not there", filepath.Join(dir, "nothing"), berth.ErrNotFound, "no such file"},
		{"empty", write("empty", nil), berth.ErrInvalid, "unexpected EOF"},
		{"bogus", write("bogus", []byte("bogus")), berth.ErrInvalid, "unexpected EOF"},
		{"cut off in a header", write("cut1", whole[:300]), berth.ErrInvalid, "unexpected EOF"},
		{"cut off in the first file", write("cut2", whole[:700]), berth.ErrInvalid, "unexpected EOF"},
		{"cut off in a layer", write("cut3", whole[:10<<10]), berth.ErrInvalid, "unexpected EOF"},
		{"cut off between files", write("cut4", whole[:1536]), berth.ErrInvalid, "unexpected EOF"},
		{"cut off and gzip", write("cut5", zip[:len(zip)/2]), berth.ErrInvalid, "unexpected EOF"},
		{"no archive", write("text", bytes.Repeat([]byte("text "), 1000)), berth.ErrInvalid, "invalid tar header"},
		{"root file system", write("rootfs", archive(t, dir2("etc"), file("etc/passwd", ""))), berth.ErrInvalid, "berth image import"},
		{"something else", write("else", archive(t, file("x", ""))), berth.ErrInvalid, "it holds no image"},
		{"file not in the archive", write("lacks", archive(t, file("manifest.json", `[{"Config":"c.json","Layers":["l.tar"]}]`))), berth.ErrInvalid, `it names "c.json", which it does not hold`},
		{"file outside the archive", write("outside", archive(t, file("manifest.json", `[{"Config":"../../../../etc/passwd"}]`))), berth.ErrInvalid, "which it does not hold"},
		{"links in a circle", write("circle", archive(t, symlink("manifest.json", "b"), symlink("b", "manifest.json"))), berth.ErrInvalid, "it holds no image"},
		{"not JSON", write("json", archive(t, file("manifest.json", "{"))), berth.ErrInvalid, "manifest.json"},
		{"directory", t.TempDir(), berth.ErrInvalid, "no OCI layout"},
		{"layer changed", flipped, berth.ErrInvalid, "layer digest mismatch"},
		{"layer is a named pipe", waiting, berth.ErrInvalid, "is no regular file"},
		{"layer missing", lacking, berth.ErrInvalid, "which it does not hold"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Load(t.Context(), c.path, LoadOptions{})
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v; want %v with %q", err, c.kind, c.text)
			}
			if infos, err := s.List(t.Context()); err != nil || len(infos) > 0 {
				t.Errorf("left behind: %v, %v", infos, err)
			}
		})
	}
}

func dir2(name string) entry { return dir(name + "/") }

func TestImportCompressed(t *testing.T) {
	body := archive(t, file("a", "1"))
	run := func(program string, args ...string) []byte {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Stdin = bytes.NewReader(body)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(body)
	w.Close()
	z, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(body)
	z.Close()
	twice := append(bytes.Clone(gz.Bytes()), gzipOf(t, nil)...)
	var first berth.Image
	for name, b := range map[string][]byte{"tar": body, "gzip": gz.Bytes(), "gzip of two parts": twice, "zstd": zs.Bytes(), "xz": run("xz"), "bzip2": run("bzip2")} {
		s := newStore(t)
		img, err := s.Import(t.Context(), bytes.NewReader(b), "img", ImportOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if first.ID == "" {
			first = img
		}
		equal(t, img, first)
		for _, n := range []int{len(b) / 2, 3} {
			_, err = s.Import(t.Context(), bytes.NewReader(b[:n]), "cut", ImportOptions{})
			if !errors.Is(err, berth.ErrInvalid) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s cut off after %d: %v", name, n, err)
			}
		}
	}
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

func TestImportNames(t *testing.T) {
	s := newStore(t)
	body := archive(t, file("a", "1"))
	for name, kind := range map[string]error{"Bad": berth.ErrInvalid, "a@" + testDigest: berth.ErrInvalid, "x.sif": berth.ErrUnsupported} {
		if _, err := s.Import(t.Context(), bytes.NewReader(body), name, ImportOptions{}); !errors.Is(err, kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	config := berth.ImageConfig{
		User: "1", Env: []string{"A=1"}, Entrypoint: []string{"e"}, Cmd: []string{"c"}, Volumes: []string{"/v"},
		WorkingDir: "/w", StopSignal: "INT", Labels: map[string]string{"k": "v"},
	}
	img, err := s.Import(t.Context(), bytes.NewReader(body), "", ImportOptions{Config: config, Platform: "linux/arm/v6"})
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture, config.Variant = "linux", "arm", "v6"
	equal(t, img, berth.Image{Ref: img.ID, ID: img.ID, Config: config})
}

// TestRealTools pulls from Debian's registry what skopeo put there, in the three compressions, and checks that
// the image is the same.
func TestRealTools(t *testing.T) {
	host := startRegistry(t)
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the tests need Debian's busybox-static: %v", err)
	}
	img := newImage(t, layer(t, dir("bin"), with(file("bin/busybox", string(busybox)), func(h *tar.Header) { h.Mode = 0o755 }), hardlink("bin/sh", "bin/busybox")), layer(t, file("etc/passwd", "root:x:0:0::/:/bin/sh\n")))
	path := dockerArchive(t, map[string]v1.Image{"busybox:1": img})
	for _, format := range []string{"gzip", "zstd"} {
		ref := host + "/busybox:" + format
		out, err := exec.CommandContext(t.Context(), "skopeo", "copy", "--format=oci", "--dest-compress-format="+format, "--dest-tls-verify=false", "docker-archive:"+path, "docker://"+ref).CombinedOutput()
		if err != nil {
			t.Fatalf("the tests need skopeo: %v: %s", err, out)
		}
		s := newStore(t)
		got, err := s.Image(t.Context(), amd64(ref))
		if err != nil {
			t.Fatal(err)
		}
		sh, err := s.Lookup(got.ID, "/etc/passwd")
		if err != nil || string(sh) != "root:x:0:0::/:/bin/sh\n" {
			t.Errorf("%q, %v", sh, err)
		}
		raw, err := exec.CommandContext(t.Context(), "skopeo", "inspect", "--tls-verify=false", "docker://"+ref).Output()
		if err != nil {
			t.Fatal(err)
		}
		var there struct{ Digest string }
		if err := json.Unmarshal(raw, &there); err != nil {
			t.Fatal(err)
		}
		equal(t, got.Digest, there.Digest)
	}
	for _, to := range []string{"docker-archive", "oci-archive"} {
		file := filepath.Join(t.TempDir(), "archive.tar")
		out, err := exec.CommandContext(t.Context(), "skopeo", "copy", "--src-tls-verify=false", "docker://"+host+"/busybox:gzip", to+":"+file+":example.org/busybox:9").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		s := newStore(t)
		images, err := s.Load(t.Context(), file, LoadOptions{})
		if err != nil || len(images) != 1 || images[0].Ref != "example.org/busybox:9" {
			t.Fatal(to, images, err)
		}
		if sh, err := s.Lookup(images[0].ID, "/bin/sh"); err == nil && len(sh) == 0 || err != nil && !errors.Is(err, berth.ErrExhausted) {
			t.Errorf("%s: %d bytes, %v", to, len(sh), err)
		}
	}
	for ref, text := range map[string]string{host + "/nope:1": "has no image nope", host + "/busybox:nope": `has no tag "nope"; there is: gzip, zstd`} {
		if _, err := newStore(t).Image(t.Context(), amd64(ref)); !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(archive(f, file("manifest.json", `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l"]}]`), file("c.json", `{"rootfs":{"diff_ids":["`+testDigest+`"]}}`), file("l", "")))
	f.Add(archive(f, file("index.json", `{"manifests":[{"digest":"`+testDigest+`","annotations":{"x":"y"}}]}`)))
	f.Add([]byte{0x1f, 0x8b})
	dir := f.TempDir()
	s, err := Open(Options{Dir: filepath.Join(dir, "images")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if compression(b) == "xz" {
			t.Skip("starts a program each time")
		}
		images, err := s.LoadReader(t.Context(), bytes.NewReader(b), LoadOptions{})
		if err != nil && (!hasKind(err) || len(images) > 0) {
			t.Fatal(images, err)
		}
	})
}
