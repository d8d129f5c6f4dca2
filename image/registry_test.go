package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-project/berth"
)

// bad is a registry that misbehaves as the test says: answer handles a request, or leaves it to the registry.
type bad struct {
	inner  http.Handler
	answer func(w http.ResponseWriter, r *http.Request) bool
	mu     sync.Mutex
	seen   []string // "GET /v2/…"
}

func (b *bad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.seen = append(b.seen, r.Method+" "+r.URL.Path)
	b.mu.Unlock()
	if b.answer == nil || !b.answer(w, r) {
		b.inner.ServeHTTP(w, r)
	}
}

func (b *bad) requests() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.seen)
}

// serveBad runs a registry with an image img:1 that misbehaves once the image is there.
func serveBad(t *testing.T, img v1.Image, answer func(w http.ResponseWriter, r *http.Request) bool) (ref string, b *bad) {
	t.Helper()
	b = &bad{}
	host := serve(t, func(h http.Handler) http.Handler { b.inner = h; return b })
	push(t, host+"/img:1", img)
	b.mu.Lock()
	b.answer, b.seen = answer, nil
	b.mu.Unlock()
	return host + "/img:1", b
}

// noise is a layer that does not compress, of n bytes.
func noise(t testing.TB, n int) v1.Layer {
	t.Helper()
	var seed [32]byte
	b := make([]byte, n)
	rand.NewChaCha8(seed).Read(b)
	return layer(t, file("noise", string(b)))
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

// isLayer tells a layer from the configuration by its size.
func isLayer(b *bad, r *http.Request) ([]byte, bool) {
	if !isBlob(r) || r.Method != http.MethodGet {
		return nil, false
	}
	rec := httptest.NewRecorder()
	plain := r.Clone(r.Context())
	plain.Header.Del("Range")
	b.inner.ServeHTTP(rec, plain)
	return rec.Body.Bytes(), rec.Body.Len() > 64<<10
}

func TestResume(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges=%t", ranges), func(t *testing.T) {
			img := newImage(t, noise(t, 1<<20))
			var b *bad
			var asked []string
			ref, b := serveBad(t, img, nil)
			b.answer = func(w http.ResponseWriter, r *http.Request) bool {
				body, ok := isLayer(b, r)
				if !ok {
					return false
				}
				asked = append(asked, r.Header.Get("Range"))
				off := 0
				if ranges && r.Header.Get("Range") != "" {
					fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(body)-1, len(body)))
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(body)-off))
				if off > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				n := len(body)
				if len(asked) < 4 {
					n = min(n, 200<<10*len(asked)) // then the connection breaks
				}
				w.Write(body[off:n])
				return true
			}
			s := newStore(t)
			got, err := s.Image(t.Context(), amd64(ref))
			if err != nil {
				t.Fatal(err)
			}
			want, _ := img.ConfigName()
			equal(t, got.ID, want.String())
			if len(asked) != 4 || asked[0] != "" || !strings.HasPrefix(asked[3], "bytes=") || asked[3] == asked[1] {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}

func TestStall(t *testing.T) {
	img := newImage(t, noise(t, 1<<20))
	release := make(chan struct{})
	defer close(release)
	var stalls atomic.Int32
	var b *bad
	ref, b := serveBad(t, img, nil)
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		body, ok := isLayer(b, r)
		if !ok {
			return false
		}
		stalls.Add(1)
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", 1000, len(body)-1, len(body)))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Write(body[:1000])
		}
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
	s := newStore(t, func(o *Options) { o.Stall, o.Retries = 100*time.Millisecond, 2 })
	_, err := s.Image(t.Context(), amd64(ref))
	if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "no byte came for 100ms") {
		t.Error(err)
	}
	if n := stalls.Load(); n < 3 || n > 6 { // a busy machine may stall before the first byte, too
		t.Errorf("%d transfers", n)
	}
}

// answers are statuses that a registry gives before it does as it should.
func answers(what func(*http.Request) bool, n int, status int, header ...string) func(w http.ResponseWriter, r *http.Request) bool {
	var given atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !what(r) || given.Add(1) > int32(n) {
			return false
		}
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		return true
	}
}

func isManifest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
func isPing(r *http.Request) bool     { return r.URL.Path == "/v2/" }

func TestRetried(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request) bool
		least  time.Duration
	}{
		{"500 on ping", answers(isPing, 2, 500), 0},
		{"503 on manifest", answers(isManifest, 3, 503), 0},
		{"500 on blobs", answers(isBlob, 3, 500), 0},
		{"429 on manifest", answers(isManifest, 1, 429, "Retry-After", "1"), time.Second},
		{"429 on blobs", answers(isBlob, 1, 429, "Retry-After", "1"), time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ref, _ := serveBad(t, newImage(t, layer(t, file("a", "x"))), c.answer)
			var mu sync.Mutex
			var why, phases []string
			req := amd64(ref)
			req.Progress = func(p berth.Progress) {
				mu.Lock()
				defer mu.Unlock()
				if p.Phase == "retry" {
					why = append(why, p.Why)
				}
				phases = append(phases, p.Phase)
			}
			start := time.Now()
			_, err := newStore(t).Image(t.Context(), req)
			if err != nil || time.Since(start) < c.least {
				t.Errorf("%v after %s", err, time.Since(start))
			}
			if mu.Lock(); len(why) == 0 || !strings.HasPrefix(why[0], "try 1 of 6: ") || !strings.Contains(why[0], strings.Fields(c.name)[0]) {
				t.Errorf("told of the tries %q", why)
			}
			if len(phases) == 0 || phases[0] != "resolve" {
				t.Errorf("who asked for the pull missed its beginning: %q", phases)
			}
		})
	}
}

func TestPullErrors(t *testing.T) {
	img := newImage(t, layer(t, file("a", "x")), noise(t, 100<<10))
	digest, _ := img.Digest()
	always := 1 << 30
	wrongBytes := func(b **bad) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			body, ok := isLayer(*b, r)
			if ok {
				body[len(body)/2] ^= 1
				w.Write(body)
			}
			return ok
		}
	}
	for _, c := range []struct {
		name   string
		ref    func(host string) string
		answer func(b **bad) func(http.ResponseWriter, *http.Request) bool
		req    berth.ImageRequest
		kind   error
		text   string
	}{
		{"no such tag", func(h string) string { return h + "/img:nope" }, nil, berth.ImageRequest{}, berth.ErrNotFound, `/img has no tag "nope"; there is: 1`},
		{"no such image", func(h string) string { return h + "/nope:1" }, nil, berth.ImageRequest{}, berth.ErrNotFound, "has no image nope"},
		{"no such digest", func(h string) string { return h + "/img@" + testDigest }, nil, berth.ImageRequest{}, berth.ErrNotFound, "no image with the digest " + testDigest},
		{"other platform", nil, nil, berth.ImageRequest{Platform: "linux/s390x"}, berth.ErrNotFound, "not made for linux/s390x; there is: linux/amd64"},
		{"401", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool {
			return answers(isPing, always, 401, "WWW-Authenticate", `Basic realm="x"`)
		}, berth.ImageRequest{}, berth.ErrNotFound, ""}, // the manifest is open
		{"401 on the manifest", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool { return answers(isManifest, always, 401) }, berth.ImageRequest{}, berth.ErrDenied, "no access to"},
		{"403", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool { return answers(isManifest, always, 403) }, berth.ImageRequest{}, berth.ErrDenied, "log in with `docker login 127.0.0.1"},
		{"403 on blobs", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool { return answers(isBlob, always, 403) }, berth.ImageRequest{}, berth.ErrDenied, "no access to"},
		{"404 on blobs", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool { return answers(isBlob, always, 404) }, berth.ImageRequest{}, berth.ErrNotFound, "404 Not Found"},
		{"500 for ever", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool { return answers(isManifest, always, 500) }, berth.ImageRequest{}, berth.ErrUnavailable, "500 Internal Server Error"},
		{"429 for ever", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool { return answers(isManifest, always, 429) }, berth.ImageRequest{}, berth.ErrUnavailable, "429 Too Many Requests"},
		{"wrong bytes", nil, wrongBytes, berth.ImageRequest{}, berth.ErrInvalid, "layer digest mismatch"},
		{"wrong manifest", func(h string) string { return h + "/img@" + digest.String() }, func(b **bad) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isManifest(r) {
					w.Write([]byte(`{"schemaVersion":2}`))
				}
				return isManifest(r)
			}
		}, berth.ImageRequest{}, berth.ErrInvalid, "manifest digest mismatch"},
		{"not JSON", nil, func(**bad) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isManifest(r) {
					io.WriteString(w, "<html>")
				}
				return isManifest(r)
			}
		}, berth.ImageRequest{}, berth.ErrInvalid, "is no JSON"},
		{"never", nil, nil, berth.ImageRequest{Policy: berth.PullNever}, berth.ErrNotFound, "pulling is off"},
		{"unknown policy", nil, nil, berth.ImageRequest{Policy: "sometimes"}, berth.ErrInvalid, "missing, always or never"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b *bad
			var answer func(http.ResponseWriter, *http.Request) bool
			if c.answer != nil {
				answer = c.answer(&b)
			}
			ref, b2 := serveBad(t, img, answer)
			b = b2
			if c.ref != nil {
				ref = c.ref(strings.TrimSuffix(ref, "/img:1"))
			}
			c.req.Ref = ref
			if c.req.Platform == "" {
				c.req.Platform = "linux/amd64"
			}
			s := newStore(t)
			_, err := s.Image(t.Context(), c.req)
			if c.text == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v; want %v with %q", err, c.kind, c.text)
			}
			if infos, err := s.List(t.Context()); err != nil || len(infos) > 0 {
				t.Errorf("left behind: %v, %v", infos, err)
			}
		})
	}
}

func TestDigestMismatch(t *testing.T) {
	// A layer that is sound but another than the manifest names.
	other, err := layer(t, file("a", strings.Repeat("other", 20<<10))).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(other)
	ref, b := serveBad(t, newImage(t, noise(t, 100<<10)), nil)
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		_, ok := isLayer(b, r)
		if ok {
			w.Write(append(body, make([]byte, 200<<10)...))
		}
		return ok
	}
	_, err = newStore(t).Image(t.Context(), amd64(ref))
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "layer digest mismatch: it should be sha256:") {
		t.Error(err)
	}

	// A blob that is what the manifest names, and an archive that is not what the configuration names.
	img := newImage(t, layer(t, file("a", "x")))
	c, _ := img.ConfigFile()
	c = c.DeepCopy()
	c.RootFS.DiffIDs[0].Hex = hexOf(testDigest)
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	ref, _ = serveBad(t, img, nil)
	_, err = newStore(t).Image(t.Context(), amd64(ref))
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "layer digest mismatch: unpacked it should be "+testDigest) {
		t.Error(err)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	for _, c := range []struct{ ref, text string }{
		{host + "/img", "is not reachable: dial tcp"},
		{"no-such-host.invalid/img", "no-such-host.invalid"},
	} {
		_, err := newStore(t).Image(t.Context(), amd64(c.ref))
		if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.ref, err)
		}
	}
}

// rerouted sends every request to one address, whatever its host, so that names beyond loopback can be tested.
type rerouted struct{ to string }

func (r rerouted) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "https" {
		return nil, errors.New("http: server gave HTTP response to HTTPS client")
	}
	req = req.Clone(req.Context())
	req.URL.Host = r.to
	return http.DefaultTransport.RoundTrip(req)
}

func TestPlainHTTP(t *testing.T) {
	host := serve(t, nil)
	push(t, host+"/img:1", newImage(t, layer(t, file("a", "x"))))
	for _, c := range []struct {
		host     string
		insecure bool
		ok       bool
	}{
		{"registry.example", false, false},
		{"registry.example", true, true},
		{"10.1.2.3:5000", false, false},
		{"10.1.2.3:5000", true, true},
		{"box.local", false, false},
		{"localhost:5000", false, true},
		{"127.3.2.1", false, true},
		{"[::1]:5000", false, true},
	} {
		s := newStore(t, func(o *Options) { o.Transport = rerouted{host} })
		req := amd64(c.host + "/img:1")
		req.Insecure = c.insecure
		_, err := s.Image(t.Context(), req)
		if c.ok && err != nil || !c.ok && (!hasKind(err) || !strings.Contains(err.Error(), "http")) {
			t.Errorf("%s, insecure=%t: %v", c.host, c.insecure, err)
		}
	}
}

func TestInsecureTLS(t *testing.T) {
	inner := serveHandler(t)
	srv := httptest.NewTLSServer(inner)
	defer srv.Close()
	host := strings.Replace(strings.TrimPrefix(srv.URL, "https://"), "127.0.0.1", "127.0.0.1", 1)
	r, err := name.ParseReference(host + "/img:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, newImage(t, layer(t, file("a", "x"))), remote.WithTransport(srv.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	if _, err := s.Image(t.Context(), amd64(host+"/img:1")); !errors.Is(err, berth.ErrUnavailable) {
		t.Error(err)
	}
	req := amd64(host + "/img:1")
	req.Insecure = true
	if _, err := s.Image(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:secret"))
	protect := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != auth {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
	host := serve(t, protect)
	r, err := name.ParseReference(host + "/img:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, newImage(t, layer(t, file("a", "x"))), remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"})); err != nil {
		t.Fatal(err)
	}
	config := func(t *testing.T, v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	login := func(password string) map[string]any {
		return map[string]any{"auths": map[string]any{host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("me:" + password))}}}
	}
	for _, c := range []struct {
		name string
		env  func(t *testing.T)
		text string // of the error; "" is none
	}{
		{"none", func(*testing.T) {}, "no access to " + host + "/img"},
		{"DOCKER_CONFIG", func(t *testing.T) { t.Setenv("DOCKER_CONFIG", config(t, login("secret"))) }, ""},
		{"wrong password", func(t *testing.T) { t.Setenv("DOCKER_CONFIG", config(t, login("wrong"))) }, "no access to"},
		{"REGISTRY_AUTH_FILE", func(t *testing.T) {
			t.Setenv("DOCKER_CONFIG", config(t, login("wrong")))
			t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(config(t, login("secret")), "config.json"))
		}, ""},
		{"helper", func(t *testing.T) {
			dir := t.TempDir()
			script := "#!/bin/sh\nread -r url\nprintf '{\"ServerURL\":\"%s\",\"Username\":\"me\",\"Secret\":\"secret\"}' \"$url\"\n"
			if err := os.WriteFile(filepath.Join(dir, "docker-credential-berthtest"), []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			t.Setenv("DOCKER_CONFIG", config(t, map[string]any{"credHelpers": map[string]string{host: "berthtest"}}))
		}, ""},
		{"helper not there", func(t *testing.T) {
			t.Setenv("DOCKER_CONFIG", config(t, map[string]any{"credHelpers": map[string]string{host: "berth-not-there"}}))
		}, "its credentials cannot be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("HOME", t.TempDir())
			t.Setenv("DOCKER_CONFIG", t.TempDir())
			t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
			c.env(t)
			_, err := newStore(t, func(o *Options) { o.Keychain = Keychain() }).Image(t.Context(), amd64(host+"/img:1"))
			if c.text == "" && err != nil || c.text != "" && (!errors.Is(err, berth.ErrDenied) || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("error %v; want %q", err, c.text)
			}
		})
	}
}

func TestPlatforms(t *testing.T) {
	host := serve(t, nil)
	var index v1.ImageIndex = empty.Index
	ids := map[string]string{}
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm", Variant: "v6"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}, {OS: "unknown", Architecture: "unknown"}} {
		img := newImage(t, layer(t, file("arch", p.String())))
		c, _ := img.ConfigFile()
		c = c.DeepCopy()
		c.OS, c.Architecture, c.Variant = p.OS, p.Architecture, p.Variant
		img, err := mutate.ConfigFile(img, c)
		if err != nil {
			t.Fatal(err)
		}
		id, _ := img.ConfigName()
		ids[p.Architecture] = id.String()
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	r, err := name.ParseReference(host + "/img:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(r, mutate.IndexMediaType(index, types.DockerManifestList)); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	for platform, arch := range map[string]string{"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "arm"} {
		got, err := s.Image(t.Context(), berth.ImageRequest{Ref: host + "/img:1", Platform: platform})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got.ID, ids[arch])
	}
	_, err = s.Image(t.Context(), berth.ImageRequest{Ref: host + "/img:1", Platform: "linux/riscv64"})
	if !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), "not made for linux/riscv64; there is: linux/amd64, linux/arm/v6, linux/arm64") {
		t.Error(err)
	}
	if _, err := s.Inspect(t.Context(), host+"/img:1"); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "use an ID") {
		t.Error(err)
	}
}

func TestPolicies(t *testing.T) {
	ref, b := serveBad(t, newImage(t, layer(t, file("a", "1"))), nil)
	s := newStore(t)
	first, err := s.Image(t.Context(), amd64(ref))
	if err != nil {
		t.Fatal(err)
	}
	n := b.requests()
	for _, policy := range []berth.PullPolicy{"", berth.PullMissing, berth.PullNever} {
		req := amd64(ref)
		req.Policy = policy
		got, err := s.Image(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, first)
	}
	if b.requests() != n {
		t.Errorf("the registry was asked for an image that is here: %v", b.seen[n:])
	}
	second := newImage(t, layer(t, file("a", "2")))
	push(t, ref, second)
	req := amd64(ref)
	req.Policy = berth.PullAlways
	got, err := s.Image(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := second.ConfigName()
	equal(t, got.ID, id.String())
	byID, err := s.Image(t.Context(), berth.ImageRequest{Ref: first.ID, Policy: berth.PullAlways})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, byID.ID, first.ID)
}

// TestOnePull has many ask for the same image, of two references, at once: every layer is fetched once.
func TestOnePull(t *testing.T) {
	shared := noise(t, 200<<10)
	ref, b := serveBad(t, newImage(t, shared, layer(t, file("a", "1"))), nil)
	other := strings.TrimSuffix(ref, "1") + "2"
	push(t, other, newImage(t, shared, layer(t, file("a", "2"))))
	b.mu.Lock()
	b.seen = nil
	b.mu.Unlock()
	dir := filepath.Join(t.TempDir(), "images")
	stores := []*Store{newStore(t, func(o *Options) { o.Dir = dir }), newStore(t, func(o *Options) { o.Dir = dir })}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			req := amd64([]string{ref, other}[i%2])
			if _, err := stores[i/2%2].Image(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	count := map[string]int{}
	for _, r := range b.seen {
		count[r]++
	}
	digest, _ := shared.Digest()
	for _, r := range b.seen {
		if strings.Contains(r, "/blobs/") && count[r] != 1 {
			t.Errorf("%s: %d times", r, count[r])
		}
	}
	if count["GET /v2/img/blobs/"+digest.String()] != 1 {
		t.Errorf("the shared layer was not seen: %v", count)
	}
}

// TestWaitersLeave ends the contexts of those who wait: with the last one the pull ends.
func TestWaitersLeave(t *testing.T) {
	release := make(chan struct{})
	started := make(chan struct{}, 10)
	ref, b := serveBad(t, newImage(t, noise(t, 200<<10)), nil)
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if _, ok := isLayer(b, r); !ok {
			return false
		}
		started <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return false
	}
	s := newStore(t)
	var cancels []context.CancelCauseFunc
	results := make(chan error, 3)
	for range 3 {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancels = append(cancels, cancel)
		go func() {
			_, err := s.Image(ctx, amd64(ref))
			results <- err
		}()
	}
	<-started
	cancels[0](berth.ErrCanceled)
	if err := <-results; !errors.Is(err, berth.ErrCanceled) {
		t.Error(err)
	}
	cancels[1](berth.ErrCanceled)
	cancels[2](berth.ErrShutdown)
	for range 2 {
		if err := <-results; !errors.Is(err, berth.ErrCanceled) && !errors.Is(err, berth.ErrShutdown) {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil { // the pull has ended, or this hangs
		t.Error(err)
	}
	close(release)
	if _, err := s.Image(t.Context(), amd64(ref)); err != nil {
		t.Error(err)
	}
}

func TestProgress(t *testing.T) {
	img := newImage(t, noise(t, 300<<10))
	ref, _ := serveBad(t, img, nil)
	var mu sync.Mutex
	var phases []string
	var last berth.Progress
	req := amd64(ref)
	req.Progress = func(p berth.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Layer != "" {
			last = p
		}
		if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
			phases = append(phases, p.Phase)
		}
	}
	if _, err := newStore(t).Image(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	m, _ := img.Manifest()
	equal(t, last, berth.Progress{Phase: "done", Layer: m.Layers[0].Digest.String(), Done: m.Layers[0].Size, Total: m.Layers[0].Size})
	equal(t, phases, []string{"resolve", "download", "unpack", "done"})
}

func TestNoImage(t *testing.T) {
	img := mutate.ConfigMediaType(newImage(t, layer(t, file("a", "x"))), "application/vnd.cncf.helm.config.v1+json")
	ref, _ := serveBad(t, img, nil)
	_, err := newStore(t).Image(t.Context(), amd64(ref))
	if !errors.Is(err, berth.ErrUnsupported) || !bytes.Contains([]byte(fmt.Sprint(err)), []byte("no container image but application/vnd.cncf.helm")) {
		t.Error(err)
	}
}
