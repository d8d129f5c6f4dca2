package docker_test

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestBadRegistries: registries that stall, lie about a digest, are too busy, or let nobody in.
func TestBadRegistries(t *testing.T) {
	t.Parallel()
	good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	done := make(chan struct{})
	for _, row := range []struct {
		name string
		bad  func(w http.ResponseWriter, r *http.Request) bool // whether it has answered
		kind error
		says string // a regular expression
	}{
		{"stalls", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			w.Header().Set("Content-Length", "1000000")
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			select {
			case <-done:
			case <-r.Context().Done():
			}
			return true
		}, berth.ErrUnavailable, "no progress"},
		{"lies", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			whole := httptest.NewRecorder()
			good.ServeHTTP(whole, r)
			w.WriteHeader(whole.Code)
			lie := whole.Body.Bytes()
			lie[len(lie)/2] ^= 1
			_, _ = w.Write(lie)
			return true
		}, berth.ErrInvalid, "verification failed|unexpected commit digest"},
		{"is busy", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"come back later"}]}`)
			return true
		}, berth.ErrUnavailable, "come back later|429 Too Many Requests"}, // a daemon that asks by HEAD gets no words
		{"lets nobody in", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"not you"}]}`)
			return true
		}, berth.ErrDenied, ""},
		{"lets nobody in, without a word", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"denied"}]}`)
			return true
		}, berth.ErrDenied, ""},
		{"answers with a page", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, "<html><body>Log in first</body></html>")
			return true
		}, berth.ErrInvalid, ""},
		{"refuses with a page", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, "<html><body>Log in first</body></html>")
			return true
		}, berth.ErrDenied, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			e, _ := newEngine(t, docker.Config{Stall: 3 * time.Second})
			var harm atomic.Bool
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !harm.Load() || r.URL.Path == "/v2/" || !row.bad(w, r) {
					good.ServeHTTP(w, r)
				}
			}))
			defer server.Close()
			defer server.CloseClientConnections()
			repo := strings.TrimPrefix(server.URL, "http://") + "/bad/image"
			push(t, repo, randomImage(t))
			harm.Store(true)
			_, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo})
			if !errors.Is(err, row.kind) || !regexp.MustCompile(row.says).MatchString(err.Error()) || !strings.Contains(err.Error(), repo) {
				t.Errorf("%v; want %v, and %q", err, row.kind, row.says)
			}
		})
	}
	close(done)
}

// TestBusyRegistry: a pull is tried again where the registry is busy, and that is told.
func TestBusyRegistry(t *testing.T) {
	t.Parallel()
	e, _ := newEngine(t, docker.Config{})
	good := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var busy atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") && r.Method != http.MethodPut && busy.Load() {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"come back later"}]}`)
			return
		}
		good.ServeHTTP(w, r)
	}))
	defer server.Close()
	repo := strings.TrimPrefix(server.URL, "http://") + "/busy/image"
	push(t, repo, randomImage(t))
	busy.Store(true) // until the daemon has given up once, before which some try several times
	var mu sync.Mutex
	var why []string
	img, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo, Progress: func(p berth.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Phase == "retry" {
			why = append(why, p.Why)
			busy.Store(false)
		}
	}})
	if err != nil || img.ID == "" {
		t.Fatal(img, err)
	}
	if len(why) == 0 || !strings.HasPrefix(why[0], "try 1 of 6: ") {
		t.Errorf("told of %q", why)
	}
}

func randomImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(1<<20, 2)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, repo string, img v1.Image) {
	t.Helper()
	ref, err := name.ParseReference(repo+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}
