package docker_test

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/image"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/moby/client"
)

// TestPlatform: an image is pulled for the platform that is asked for, and one that is there for another does not do.
func TestPlatform(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repo := strings.TrimPrefix(server.URL, "http://") + "/two/platforms"
	own, other := platforms()
	ref, err := name.ParseReference(repo+":1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index := forBoth(t)
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, docker.Config{})
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	// Containerd's store keeps what is there for other platforms; another has one image of a name.
	many := containerdStore(t, api)
	anothers := struct {
		arch string
		kind error
		says string
	}{"", berth.ErrNotFound, "for linux/" + other + ": what is there is for linux/" + own}
	if many {
		anothers.arch, anothers.kind, anothers.says = other, nil, ""
	}
	for _, row := range []struct {
		name, platform string
		policy         berth.PullPolicy
		arch           string
		kind           error
		says           string
	}{
		{"another's", "linux/" + other, berth.PullMissing, other, nil, ""},
		{"another's again", "linux/" + other, berth.PullNever, other, nil, ""},
		{"one's own, of what is there for another", "", berth.PullNever, "", berth.ErrNotFound, "for linux/" + own + ": what is there is for linux/" + other},
		{"the same, pulled", "", berth.PullMissing, own, nil, ""},
		{"another's, of what is there for one's own", "linux/" + other, berth.PullNever, anothers.arch, anothers.kind, anothers.says},
		{"one's own again", "linux/" + own, berth.PullNever, own, nil, ""},
		{"nobody's", "linux/s390x", berth.PullMissing, "", berth.ErrNotFound, repo},
	} {
		img, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo + ":1", Platform: row.platform, Policy: row.policy})
		if !errors.Is(err, row.kind) || err != nil && !strings.Contains(err.Error(), row.says) || img.Config.Architecture != row.arch {
			t.Errorf("%s: %s, %v; want %s, %v, and %q", row.name, img.Config.Architecture, err, row.arch, row.kind, row.says)
		}
		if err != nil {
			continue
		}
		// Another store leaves an index's digest to the image that was the first to come by it.
		if img.Digest != digest.String() && (many || img.Digest != "") {
			t.Errorf("%s: digest %q, want %s", row.name, img.Digest, digest)
		}
		if arch := containerOf(t, e, api, img); arch != row.arch {
			t.Errorf("%s: its container is for %s, want %s", row.name, arch, row.arch)
		}
	}
	push(t, repo+"/one", randomImage(t))
	img, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo + "/one", Platform: "linux/" + other})
	if !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), repo+"/one") {
		t.Errorf("of a registry that has it for one's own alone: %+v, %v; want %v", img, err, berth.ErrNotFound)
	}
	list, err := e.Images().List(t.Context())
	if err != nil || !slices.ContainsFunc(list, func(i image.Info) bool {
		return slices.Contains(i.Refs, repo+":1") && i.Config.Architecture == own && len(i.Layers) == 2
	}) {
		t.Errorf("listed %+v, %v", list, err)
	}
	removed, err := e.Images().Prune(t.Context(), image.PruneOptions{All: true})
	if err != nil || !slices.Contains(removed.Refs, repo+":1") || !many && !slices.Contains(removed.Refs, repo+"/one:latest") {
		t.Errorf("pruned %+v, %v", removed, err)
	}
}

// containerdStore reports whether a daemon keeps images in containerd's store.
func containerdStore(t *testing.T, api *client.Client) bool {
	t.Helper()
	i, err := api.Info(t.Context(), client.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(i.Info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
}

// containerOf is the architecture that the container of a step has which is started of an image.
func containerOf(t *testing.T, e *docker.Engine, api *client.Client, img berth.Image) string {
	t.Helper()
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	step := berth.NewID()
	if _, err := s.Start(t.Context(), berth.StepSpec{ID: step, Image: img, Command: []string{"/nothing"}, NoInit: true}); err != nil {
		t.Fatal(err)
	}
	c, err := api.ContainerInspect(t.Context(), "berth-"+e.Owner()+"-"+s.ID()+"-"+step, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d := c.Container.ImageManifestDescriptor; d != nil && d.Platform != nil {
		return d.Platform.Architecture
	}
	i, err := api.ImageInspect(t.Context(), c.Container.Image)
	if err != nil {
		t.Fatal(err)
	}
	return i.Architecture
}

// TestLoadPlatform: of a layout for several platforms the image for the one that is asked for is loaded, made a container of,
// listed and removed as any.
func TestLoadPlatform(t *testing.T) {
	t.Parallel()
	own, other := platforms()
	dir := t.TempDir()
	if _, err := layout.Write(dir, forBoth(t)); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, docker.Config{})
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	for _, arch := range []string{other, own} {
		name := "localhost/loaded-" + arch + ":1"
		all, err := e.Images().Load(t.Context(), dir, image.LoadOptions{Name: name, Platform: "linux/" + arch})
		if err != nil || len(all) != 1 || all[0].Config.Architecture != arch {
			t.Fatalf("%s: %+v, %v", arch, all, err)
		}
		if got := containerOf(t, e, api, all[0]); got != arch {
			t.Errorf("%s: its container is for %s", arch, got)
		}
		if i, err := e.Images().Inspect(t.Context(), name); err != nil || i.Config.Architecture != arch || len(i.Layers) != 2 {
			t.Errorf("%s: %+v, %v", arch, i, err)
		}
		if r, err := e.Images().Remove(t.Context(), name); err != nil || len(r.Images) != 1 || r.Images[0] != all[0].ID {
			t.Errorf("%s: removed %+v, %v", arch, r, err)
		}
	}
}

// platforms are the machine that this one is, and another.
func platforms() (own, other string) {
	if runtime.GOARCH == "arm64" {
		return "arm64", "amd64"
	}
	return runtime.GOARCH, "arm64"
}

// forBoth is an index with an image for each of platforms.
func forBoth(t *testing.T) v1.ImageIndex {
	t.Helper()
	index := v1.ImageIndex(empty.Index)
	own, other := platforms()
	for _, arch := range []string{own, other} {
		img := randomImage(t)
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.Architecture = arch
		if img, err = mutate.ConfigFile(img, cfg); err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return index
}

// TestImageByID: an image that is here is found by its ID, or the beginning of that, as it is listed; no registry is asked for one.
func TestImageByID(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{"docker": daemon(t).Host(), "podman": podman(t).Host()} {
		e, img := newEngine(t, docker.Config{Host: host})
		digits := strings.TrimPrefix(img.ID, "sha256:")
		for _, ref := range []string{"sha256:" + digits, digits, digits[:12]} {
			got, err := e.Image(t.Context(), berth.ImageRequest{Ref: ref})
			if err != nil || got.ID != img.ID {
				t.Errorf("%s: %s: %+v, %v", name, ref, got, err)
				continue
			}
			if _, c := begin(t, e, got, "echo up"); !wait(t, c).OK() || logs(t, c, false) != "up\n" {
				t.Errorf("%s: by %s it cannot be run", name, ref)
			}
		}
		none := "sha256:" + strings.Repeat("0", 64)
		if _, err := e.Image(t.Context(), berth.ImageRequest{Ref: none}); !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), "no image with this ID is here") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
