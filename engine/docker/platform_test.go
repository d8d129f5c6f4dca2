package docker_test

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestPlatform: an image is pulled for the platform that is asked for, and one that is there for another does not do.
func TestPlatform(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repo := strings.TrimPrefix(server.URL, "http://") + "/two/platforms"
	own, other := runtime.GOARCH, "arm64"
	if own == other {
		other = "amd64"
	}
	index := v1.ImageIndex(empty.Index)
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
	ref, err := name.ParseReference(repo+":1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, docker.Config{})
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
		{"another's, of what is there for one's own", "linux/" + other, berth.PullNever, "", berth.ErrNotFound, "for linux/" + other + ": what is there is for linux/" + own},
		{"nobody's", "linux/s390x", berth.PullMissing, "", berth.ErrNotFound, repo},
	} {
		img, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo + ":1", Platform: row.platform, Policy: row.policy})
		if !errors.Is(err, row.kind) || err != nil && !strings.Contains(err.Error(), row.says) || img.Config.Architecture != row.arch {
			t.Errorf("%s: %s, %v; want %s, %v, and %q", row.name, img.Config.Architecture, err, row.arch, row.kind, row.says)
		}
	}
}
