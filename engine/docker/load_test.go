package docker_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/image"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"
)

// TestLoadBroken: of an archive that cannot be read the daemon's own word is told, and it is the archive's fault.
func TestLoadBroken(t *testing.T) {
	t.Parallel()
	whole := archiveOf(t, "localhost/broken:1")
	for _, row := range []struct{ name, docker, podman string }{
		{"bogus", "unexpected EOF", "unexpected EOF|payload does not match any of the supported image formats"},
		{"no archive", "invalid tar header", "unexpected EOF|payload does not match any of the supported image formats"},
		{"cut off", "unexpected EOF", "unexpected EOF|payload does not match any of the supported image formats"},
		{"cut within a layer", "unexpected EOF", "unexpected EOF|payload does not match any of the supported image formats"},
	} {
		archive := map[string][]byte{
			"bogus":              []byte("bogus"),
			"no archive":         []byte(strings.Repeat("this is no archive ", 100)),
			"cut off":            whole.Bytes()[:700],
			"cut within a layer": cutLayer(t, whole.Bytes()),
		}[row.name]
		for _, d := range []struct{ name, host, says string }{{"docker", daemon(t).Host(), row.docker}, {"podman", podman(t).Host(), row.podman}} {
			e, _ := newEngine(t, docker.Config{Host: d.host})
			for _, as := range []string{"", "localhost/broken:2"} {
				says := d.says
				if as != "" {
					says = row.docker // berth reads it first
				}
				images, err := e.Images().LoadReader(t.Context(), bytes.NewReader(archive), image.LoadOptions{Name: as})
				if !errors.Is(err, berth.ErrInvalid) || !regexp.MustCompile(says).MatchString(err.Error()) {
					t.Errorf("%s, %s, as %q: %+v, %v; want %q", row.name, d.name, as, images, err, says)
				}
			}
		}
	}
}

// TestLoadNoImage: of an archive that is none of images this is told, and no file of the daemon's.
func TestLoadNoImage(t *testing.T) {
	t.Parallel()
	files := func(names ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range names {
			if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for _, row := range []struct {
		name    string
		archive []byte
		says    string
	}{
		{"nothing", nil, "it is no image archive: it is empty"},
		{"no files", files(), "it is no image archive: it holds neither manifest.json"},
		{"something else", files("x"), "it is no image archive: it holds neither manifest.json"},
		{"root file system", files("./bin/sh", "./etc/passwd"), "it is no image archive: it holds a root file system; make an image of it with `berth image import`"},
		{"cut off between files", files("x")[:512], "unexpected EOF"},
	} {
		for name, host := range map[string]string{"docker": daemon(t).Host(), "podman": podman(t).Host()} {
			e, _ := newEngine(t, docker.Config{Host: host})
			for _, as := range []string{"", "localhost/none:1"} {
				images, err := e.Images().LoadReader(t.Context(), bytes.NewReader(row.archive), image.LoadOptions{Name: as})
				if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), row.says) {
					t.Errorf("%s, %s, as %q: %+v, %v; want %q", row.name, name, as, images, err, row.says)
				}
			}
		}
	}
}

// TestLoadName: an image that is loaded under a name has this one alone, and the names that its archive has are what they were.
func TestLoadName(t *testing.T) {
	t.Parallel()
	for engine, host := range map[string]string{"docker": daemon(t).Host(), "podman": podman(t).Host()} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			e, _ := newEngine(t, docker.Config{Host: host})
			api, err := client.New(client.WithHost(host))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = api.Close() }()
			for what, form := range map[string]func(v1.Image, ...string) []byte{
				"saved": func(img v1.Image, refs ...string) []byte { return savedByDaemon(t, e, api, img, refs...) },
				"plain": func(img v1.Image, refs ...string) []byte { return archiveNamed(t, img, refs...).Bytes() },
				"gzip":  func(img v1.Image, refs ...string) []byte { return zipped(t, archiveNamed(t, img, refs...).Bytes()) },
				"oci":   func(img v1.Image, refs ...string) []byte { return ociArchive(t, img, refs...) },
				"both":  func(img v1.Image, refs ...string) []byte { return bothArchive(t, img, refs...) },
			} {
				own := func(tag string) string { return "localhost/named-" + what + ":" + tag }
				old, brought := randomImage(t), randomImage(t)
				archive := form(brought, own("kept"), own("none"))
				if all, err := e.Images().LoadReader(t.Context(), archiveNamed(t, old, own("kept")), image.LoadOptions{}); err != nil || len(all) != 1 {
					t.Fatalf("%s: %+v, %v", what, all, err)
				}
				before := idOf(t, e, own("kept"))
				// Twice: the second time the image is there.
				for _, to := range []string{own("new"), own("newer")} {
					all, err := e.Images().LoadReader(t.Context(), bytes.NewReader(archive), image.LoadOptions{Name: to})
					if err != nil || len(all) != 1 || all[0].Ref != to || all[0].ID != idOf(t, e, to) || all[0].ID == before {
						t.Errorf("%s as %s: %+v, %v", what, to, all, err)
					}
				}
				if ids := [...]string{idOf(t, e, own("kept")), idOf(t, e, own("none")), idOf(t, e, own("newer"))}; ids != [...]string{before, "", idOf(t, e, own("new"))} {
					t.Errorf("%s: kept, none, newer are %q; kept was %s", what, ids, before)
				}
				// Of the image whose name the archive has.
				same := form(old, own("kept"))
				if all, err := e.Images().LoadReader(t.Context(), bytes.NewReader(same), image.LoadOptions{Name: own("same")}); err != nil || len(all) != 1 {
					t.Errorf("%s, the same image: %+v, %v", what, all, err)
				}
				if id := idOf(t, e, own("kept")); id != before {
					t.Errorf("%s, the same image: kept is %q, and was %s", what, id, before)
				}
				// For another platform, by a name that there is.
				_, other := platforms()
				all, err := e.Images().LoadReader(t.Context(), bytes.NewReader(archive), image.LoadOptions{Name: own("kept"), Platform: "linux/" + other})
				if !errors.Is(err, berth.ErrNotFound) || idOf(t, e, own("kept")) != before {
					t.Errorf("%s, for another platform: %+v, %v; kept is %q, and was %s", what, all, err, idOf(t, e, own("kept")), before)
				}
			}
			var two bytes.Buffer
			images := map[name.Tag]v1.Image{}
			for _, tag := range []string{"kept", "second"} {
				ref, err := name.NewTag("localhost/named-two:" + tag)
				if err != nil {
					t.Fatal(err)
				}
				images[ref] = randomImage(t)
			}
			if err := tarball.MultiWrite(images, &two); err != nil {
				t.Fatal(err)
			}
			all, err := e.Images().LoadReader(t.Context(), &two, image.LoadOptions{Name: "localhost/named-two:1"})
			if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "the archive holds 2 images") {
				t.Errorf("two images: %+v, %v", all, err)
			}
			for ref, img := range images {
				id, err := img.ConfigName()
				if err != nil || idOf(t, e, ref.String()) != "" || idOf(t, e, id.String()) != "" {
					t.Errorf("two images: %s was loaded; %v", ref, err)
				}
			}
		})
	}
}

// TestLoadNames: all names of an image are told.
func TestLoadNames(t *testing.T) {
	t.Parallel()
	for engine, host := range map[string]string{"docker": daemon(t).Host(), "podman": podman(t).Host()} {
		e, _ := newEngine(t, docker.Config{Host: host})
		want := []string{"localhost/names:1", "localhost/names:2"}
		all, err := e.Images().LoadReader(t.Context(), archiveNamed(t, randomImage(t), want...), image.LoadOptions{})
		var got []string
		for _, img := range all {
			got = append(got, img.Ref)
		}
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, %v", engine, all, err)
		}
	}
}

// TestLoadPipe: an OCI archive can be loaded of a pipe.
func TestLoadPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	archive := ociArchive(t, randomImage(t), "localhost/piped:1")
	go func() { // ends with the reader
		_, _ = w.Write(archive)
		_ = w.Close()
	}()
	e, _ := newEngine(t, docker.Config{})
	all, err := e.Images().Load(t.Context(), fmt.Sprintf("/proc/self/fd/%d", r.Fd()), image.LoadOptions{})
	if err != nil || len(all) != 1 || all[0].Ref != "localhost/piped:1" {
		t.Errorf("%+v, %v", all, err)
	}
}

// idOf is the ID of an image that is there.
func idOf(t *testing.T, e *docker.Engine, ref string) string {
	t.Helper()
	i, err := e.Images().Inspect(t.Context(), ref)
	if err != nil && !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
	return i.ID
}

// archiveNamed is an archive of an image with names.
func archiveNamed(t *testing.T, img v1.Image, refs ...string) *bytes.Buffer {
	t.Helper()
	all := map[name.Tag]v1.Image{}
	for _, r := range refs {
		tag, err := name.NewTag(r)
		if err != nil {
			t.Fatal(err)
		}
		all[tag] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiWrite(all, &b); err != nil {
		t.Fatal(err)
	}
	return &b
}

// savedByDaemon is an archive with the first of the names, as the daemon writes it. It has the name afterwards only if it had it before.
func savedByDaemon(t *testing.T, e *docker.Engine, api *client.Client, img v1.Image, refs ...string) []byte {
	t.Helper()
	if idOf(t, e, refs[0]) == "" {
		if _, err := e.Images().LoadReader(t.Context(), archiveNamed(t, img, refs[0]), image.LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := e.Images().Remove(t.Context(), refs[0]); err != nil {
				t.Error(err)
			}
		}()
	}
	res, err := api.ImageSave(t.Context(), refs[:1]) // Podman's service takes one alone
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Close() }()
	raw, err := io.ReadAll(res)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func zipped(t *testing.T, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ociLayout is an image with names in OCI layout.
func ociLayout(t *testing.T, img v1.Image, refs ...string) string {
	t.Helper()
	index := v1.ImageIndex(empty.Index)
	for _, r := range refs {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Annotations: map[string]string{
			"io.containerd.image.name": r, "org.opencontainers.image.ref.name": r,
		}}})
	}
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ociArchive(t *testing.T, img v1.Image, refs ...string) []byte {
	t.Helper()
	return packed(t, ociLayout(t, img, refs...))
}

// bothArchive is an image as Docker saves it since 25: in OCI layout, with docker's own lists.
func bothArchive(t *testing.T, img v1.Image, refs ...string) []byte {
	t.Helper()
	dir := ociLayout(t, img, refs...)
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	m := tarball.Descriptor{Config: "blobs/sha256/" + config.Hex, RepoTags: refs}
	repositories := map[string]map[string]string{}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, "blobs/sha256/"+digest.Hex)
	}
	for _, r := range refs {
		repo, tag, _ := strings.Cut(r, ":")
		repositories[repo] = map[string]string{tag: config.Hex}
	}
	for file, what := range map[string]any{"manifest.json": tarball.Manifest{m}, "repositories": repositories} {
		raw, err := json.Marshal(what)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return packed(t, dir)
}

func packed(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// cutLayer ends an archive in the middle of its largest file.
func cutLayer(t *testing.T, whole []byte) []byte {
	t.Helper()
	r := bytes.NewReader(whole)
	var size, at int64
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return whole[:at+size/2]
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Size > size {
			size, at = h.Size, int64(len(whole)-r.Len())
		}
	}
}
