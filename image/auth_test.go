package image

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-project/berth"
)

// tokens is a registry that wants a token of its own server, as Docker Hub, GHCR and quay.io do.
type tokens struct {
	inner  http.Handler
	host   string
	on     atomic.Bool
	lifes  atomic.Int32 // requests that a token is good for
	mu     sync.Mutex
	uses   map[string]int32
	issued []string // how each token was asked for
}

func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.on.Load() {
		s.inner.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	if r.URL.Path == "/token" {
		defer s.mu.Unlock()
		s.issue(w, r)
		return
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	good := s.uses[token] > 0
	s.uses[token]--
	s.mu.Unlock()
	if !good {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:img:pull"`, s.host))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.inner.ServeHTTP(w, r)
}

func (s *tokens) issue(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	who := "anonymous"
	user, password, ok := r.BasicAuth()
	switch {
	case r.Method == http.MethodPost && r.PostForm.Get("grant_type") == "refresh_token":
		who = "identity " + r.PostForm.Get("refresh_token")
	case ok:
		who = user + " " + password
	}
	s.issued = append(s.issued, who)
	if strings.HasSuffix(who, "wrong") {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := fmt.Sprint("token", len(s.issued))
	s.uses[token] = s.lifes.Load()
	fmt.Fprintf(w, `{"token":%q,"access_token":%q}`, token, token)
}

func TestTokens(t *testing.T) {
	s := &tokens{uses: map[string]int32{}}
	s.host = serve(t, func(h http.Handler) http.Handler { s.inner = h; return s })
	push(t, s.host+"/img:1", newImage(t, layer(t, file("a", "x")), layer(t, file("b", "y")), layer(t, file("c", "z"))))
	s.on.Store(true)
	basic := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, c := range []struct {
		name, login string // of Docker's configuration
		lifes       int32
		issued      string // the first token
		text        string // of the error; "" is none
	}{
		{"anonymous", ``, 1 << 20, "anonymous", ""},
		{"password", `"auth":"` + basic("me:secret") + `"`, 1 << 20, "me secret", ""},
		{"wrong password", `"auth":"` + basic("me:wrong") + `"`, 1 << 20, "me wrong", "no access to"},
		{"identity token", `"auth":"` + basic("<token>:") + `","identitytoken":"ID"`, 1 << 20, "identity ID", ""},
		{"tokens that expire between the layers", ``, 2, "anonymous", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("HOME", t.TempDir())
			t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
			config := t.TempDir()
			t.Setenv("DOCKER_CONFIG", config)
			text := fmt.Sprintf(`{"auths":{%q:{%s}}}`, s.host, c.login)
			if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s.lifes.Store(c.lifes)
			s.mu.Lock()
			s.issued, s.uses = nil, map[string]int32{}
			s.mu.Unlock()
			_, err := newStore(t, func(o *Options) { o.Keychain, o.Parallel = Keychain(), 1 }).Image(t.Context(), amd64(s.host+"/img:1"))
			if c.text == "" && err != nil || c.text != "" && (!errors.Is(err, berth.ErrDenied) || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("error %v; want %q", err, c.text)
			}
			if len(s.issued) == 0 || s.issued[0] != c.issued {
				t.Errorf("tokens were asked for by %q", s.issued)
			}
		})
	}
}

// TestRedirectedBlobs has a registry that sends those who want blobs elsewhere: they come, and no credentials go.
func TestRedirectedBlobs(t *testing.T) {
	ref, b := serveBad(t, newImage(t, noise(t, 100<<10)), nil)
	var asked atomic.Int32
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("credentials went to another host: %s", a)
		}
		b.inner.ServeHTTP(w, r)
	}))
	defer cdn.Close()
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:secret"))
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Header.Get("Authorization") != auth:
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case isBlob(r):
			http.Redirect(w, r, cdn.URL+r.URL.Path, http.StatusTemporaryRedirect)
		default:
			return false
		}
		return true
	}
	config := t.TempDir()
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, strings.TrimSuffix(ref, "/img:1"), strings.TrimPrefix(auth, "Basic "))
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", config)
	if _, err := newStore(t, func(o *Options) { o.Keychain = Keychain() }).Image(t.Context(), amd64(ref)); err != nil || asked.Load() != 2 {
		t.Errorf("%v; the other host was asked %d times", err, asked.Load())
	}
}

// remoteRegistry answers for https://registry.example with a handler, and sends all else out.
type remoteRegistry struct{ http.Handler }

func (r remoteRegistry) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != "registry.example" {
		return http.DefaultTransport.RoundTrip(req)
	}
	if req.URL.Scheme != "https" {
		return nil, errors.New("the registry speaks https")
	}
	rec := httptest.NewRecorder()
	r.ServeHTTP(rec, req)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// TestRedirectedHere has a registry elsewhere send berth to this machine, by a redirection, as the place where
// tokens are to be had, and as the place of a layer: what listens here is not asked.
func TestRedirectedHere(t *testing.T) {
	var asked atomic.Int32
	local := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer local.Close()
	foreign := noise(t, 100<<10)
	img, err := mutate.Append(newImage(t), mutate.Addendum{Layer: foreign, URLs: []string{local.URL + "/layer"}, MediaType: types.DockerForeignLayer})
	if err != nil {
		t.Fatal(err)
	}
	ref, b := serveBad(t, img, nil)
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request) bool
	}{
		{"redirection", func(w http.ResponseWriter, r *http.Request) bool {
			if isManifest(r) {
				http.Redirect(w, r, local.URL+"/x", http.StatusTemporaryRedirect)
			}
			return isManifest(r)
		}},
		{"tokens", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+local.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}},
		{"place of a layer", lacks(t, foreign)},
	} {
		b.answer = c.answer
		s := newStore(t, func(o *Options) { o.Transport = remoteRegistry{b} })
		_, err := s.Image(t.Context(), amd64("registry.example"+ref[strings.Index(ref, "/"):]))
		if !hasKind(err) || !strings.Contains(err.Error(), "not allowed") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("what listens here was asked %d times", n)
	}
}

// lacks has a registry not have a layer.
func lacks(t *testing.T, l v1.Layer) func(w http.ResponseWriter, r *http.Request) bool {
	t.Helper()
	digest, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) bool {
		is := strings.HasSuffix(r.URL.Path, digest.String())
		if is {
			http.NotFound(w, r)
		}
		return is
	}
}

// TestForeignLayer pulls an image with a layer that its registry may not spread, and that is to be had elsewhere.
func TestForeignLayer(t *testing.T) {
	foreign := noise(t, 100<<10)
	blob, err := foreign.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	auth := ""
	var tries atomic.Int32
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth += r.Header.Get("Authorization")
		switch {
		case r.URL.Path != "/layer":
			http.NotFound(w, r)
		case tries.Add(1) == 1: // breaks, and is resumed
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:50<<10])
		case r.Header.Get("Range") != fmt.Sprintf("bytes=%d-", 50<<10):
			t.Errorf("asked for %q", r.Header.Get("Range"))
		default:
			_, _ = w.Write(body) // it knows no ranges
		}
	}))
	defer elsewhere.Close()
	img, err := mutate.Append(newImage(t, layer(t, file("a", "x"))), mutate.Addendum{
		Layer: foreign, URLs: []string{elsewhere.URL + "/gone", elsewhere.URL + "/layer"}, MediaType: types.DockerForeignLayer,
	})
	if err != nil {
		t.Fatal(err)
	}
	ref, _ := serveBad(t, img, lacks(t, foreign))
	s := newStore(t, func(o *Options) { o.Transport = elsewhere.Client().Transport })
	got, err := s.Image(t.Context(), amd64(ref))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := s.Lookup(got.ID, "noise"); err != nil || len(b) != 100<<10 || auth != "" {
		t.Errorf("%d bytes, %v, credentials %q", len(b), err, auth)
	}
	none, err := mutate.Append(newImage(t), mutate.Addendum{Layer: foreign, URLs: []string{elsewhere.URL + "/gone"}, MediaType: types.DockerForeignLayer})
	if err != nil {
		t.Fatal(err)
	}
	ref, _ = serveBad(t, none, lacks(t, foreign))
	_, err = newStore(t, func(o *Options) { o.Transport = elsewhere.Client().Transport }).Image(t.Context(), amd64(ref))
	if !errors.Is(err, berth.ErrNotFound) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}

// TestWrongManifests has registries that answer with what nobody meant.
func TestWrongManifests(t *testing.T) {
	img := newImage(t, layer(t, file("a", "x")))
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	size := bytes.LastIndex(raw, []byte(`"size":`)) + len(`"size":`)
	replace := func(body string) func(*bad) func(http.ResponseWriter, *http.Request) bool {
		return func(*bad) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isManifest(r) {
					_, _ = io.WriteString(w, body)
				}
				return isManifest(r)
			}
		}
	}
	digest, _ := img.Digest()
	child := fmt.Sprintf(`{"manifests":[{"digest":%q,"size":2,"platform":{"os":"linux","architecture":"amd64"}}]}`, digest)
	for _, c := range []struct {
		name   string
		answer func(*bad) func(http.ResponseWriter, *http.Request) bool
		text   string
	}{
		{"index and image in one", replace(`{"manifests":[],` + string(raw[1:])), "both an index and an image"},
		{"negative size", replace(string(raw[:size]) + "-" + string(raw[size:])), "a layer of -"},
		{"image of an index", func(*bad) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.HasSuffix(r.URL.Path, "/manifests/1"):
					_, _ = io.WriteString(w, child)
				case isManifest(r):
					_, _ = io.WriteString(w, string(raw)+" ")
				}
				return isManifest(r)
			}
		}, "manifest digest mismatch: it should be " + digest.String()},
		{"header", func(*bad) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isManifest(r) {
					w.Header().Set("Docker-Content-Digest", testDigest)
					_, _ = w.Write(raw)
				}
				return isManifest(r)
			}
		}, "manifest digest mismatch: it should be " + testDigest},
		{"configuration", func(b *bad) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				m, _ := img.Manifest()
				is := strings.HasSuffix(r.URL.Path, m.Config.Digest.String())
				if is {
					_, _ = io.WriteString(w, "{}")
				}
				return is
			}
		}, "configuration digest mismatch: it should be sha256:"},
		{"index of itself", replace(`{"manifests":[{"mediaType":"` + string(types.OCIImageIndex) + `","digest":"` + testDigest + `"}]}`), "manifest digest mismatch"},
		{"no end", func(*bad) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				zeros := make([]byte, 1<<20)
				for isManifest(r) {
					if _, err := w.Write(zeros); err != nil {
						return true
					}
				}
				return false
			}
		}, "the answer has more than 8388608 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref, b := serveBad(t, img, nil)
			b.answer = c.answer(b)
			s := newStore(t)
			_, err := s.Image(t.Context(), amd64(ref))
			if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(fmt.Sprint(err), c.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v; want %q", err, c.text)
			}
			if infos, err := s.List(t.Context()); err != nil || len(infos) > 0 {
				t.Errorf("left behind: %v, %v", infos, err)
			}
		})
	}
}
