package docker_test

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/moby/client"
)

// TestOldestAPI: the oldest version of the API that berth speaks does for what tasks need.
func TestOldestAPI(t *testing.T) {
	t.Setenv("DOCKER_API_VERSION", "1.40")
	var mu sync.Mutex
	var asked []string
	h := newHanger(t, daemon(t).Host())
	h.saw = func(path string, _ []byte) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, path)
	}
	e, img := newEngine(t, docker.Config{Host: h.host})
	env := &enginetest.Env{Engine: e, Image: img, Dir: t.TempDir(), Lendable: fakeGPUs(t)}
	checks := []string{
		"exit codes", "output to the byte", "standard input is fed", "stop", "environment", "steps share volumes", "volume copies up", "bind mounts",
		"pids limit", "out of memory", "exec", "bridge network", "published port", "own namespaces", "lent device and no other", "close",
	}
	for _, c := range enginetest.Checks() {
		i := slices.Index(checks, c.Name)
		if i < 0 {
			continue
		}
		checks = slices.Delete(checks, i, i+1)
		if err := c.Run(t.Context(), env); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	if len(checks) > 0 {
		t.Errorf("there are no checks %q", checks)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) == 0 || slices.ContainsFunc(asked, func(p string) bool { return !strings.HasPrefix(p, "/v1.40/") }) {
		t.Errorf("it asked %q", asked)
	}
}

// TestPlatformByOldestAPI: of containerd's store an old version of the API tells nothing of an image for another platform, which is said;
// another store has it, and so has the container.
func TestPlatformByOldestAPI(t *testing.T) {
	t.Setenv("DOCKER_API_VERSION", "1.40")
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repo := strings.TrimPrefix(server.URL, "http://") + "/two/platforms"
	ref, err := name.ParseReference(repo+":1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, forBoth(t), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, docker.Config{})
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	own, other := platforms()
	many := containerdStore(t, api)
	img, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo + ":1", Platform: "linux/" + other})
	switch {
	case many && (!errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "linux/"+other)):
		t.Errorf("%+v, %v; want %v", img, err, berth.ErrUnsupported)
	case !many && (err != nil || img.Config.Architecture != other):
		t.Errorf("%+v, %v", img, err)
	case !many && containerOf(t, e, api, img) != other:
		t.Errorf("its container is not for %s", other)
	}
	if img, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo + ":1"}); err != nil || img.Config.Architecture != own || containerOf(t, e, api, img) != own {
		t.Errorf("one's own: %+v, %v", img, err)
	}
}

// TestTooOldAPI: a daemon that is too old is told by its version, and what berth needs; of one that is asked for too new a
// version because the environment says so, that is named.
func TestTooOldAPI(t *testing.T) {
	for _, row := range []struct{ most, variable, want string }{
		{"1.39", "", "berth needs a daemon with API 1.40 or newer (Docker 19.03)"},
		{"1.39", "1.52", "berth needs a daemon with API 1.40 or newer (Docker 19.03)"},
		{"1.40", "1.52", "unset DOCKER_API_VERSION, or set it to 1.40 at most"},
		{"1.51", "1.52", "unset DOCKER_API_VERSION, or set it to 1.51 at most"},
	} {
		t.Run(row.most+", asked for "+row.variable, func(t *testing.T) {
			t.Setenv("DOCKER_API_VERSION", row.variable)
			socket := filepath.Join(t.TempDir(), "s")
			l, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Api-Version", row.most)
				if strings.HasSuffix(r.URL.Path, "/_ping") {
					_, _ = io.WriteString(w, "OK")
					return
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"message":"client version 1.52 is too new. Maximum supported API version is `+row.most+`"}`)
			})}
			go func() { _ = server.Serve(l) }() // ends with the server
			defer func() { _ = server.Close() }()
			e, err := docker.New(docker.Config{Host: "unix://" + socket, Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = e.Close() }()
			_, err = e.Info(t.Context())
			if !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), row.most) || !strings.HasSuffix(err.Error(), row.want) {
				t.Errorf("%v; want its end to be %q", err, row.want)
			}
		})
	}
}
