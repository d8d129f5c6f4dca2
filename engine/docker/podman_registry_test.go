package docker_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
)

// TestPodmanBadRegistries: registries that let nobody in, and what answers for one with a page for people.
func TestPodmanBadRegistries(t *testing.T) {
	const page = "<html><body>Log in first: not found</body></html>"
	rows := []struct {
		name   string
		status int
		kind   string // of the content
		body   string
		want   error
	}{
		{"lets nobody in", http.StatusForbidden, "application/json", `{"errors":[{"code":"DENIED","message":"denied"}]}`, berth.ErrDenied},
		{"refuses with a page", http.StatusForbidden, "text/html", page, berth.ErrDenied},
		{"answers with a page", http.StatusOK, "text/html", page, berth.ErrInvalid},
	}
	conf := filepath.Join(t.TempDir(), "registries.conf")
	var text strings.Builder
	var hosts []string
	for _, row := range rows {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				return
			}
			w.Header().Set("Content-Type", row.kind)
			w.WriteHeader(row.status)
			_, _ = io.WriteString(w, row.body)
		}))
		defer server.Close()
		host := strings.TrimPrefix(server.URL, "http://")
		hosts = append(hosts, host)
		_, _ = fmt.Fprintf(&text, "[[registry]]\nlocation = %q\ninsecure = true\n", host)
	}
	if err := os.WriteFile(conf, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
	d, err := dockertest.StartPodman(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	e, err := docker.New(docker.Config{Host: d.Host(), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i, row := range rows {
		_, err := e.Image(t.Context(), berth.ImageRequest{Ref: hosts[i] + "/bad/image"})
		if !errors.Is(err, row.want) {
			t.Errorf("%s: %v; want %v", row.name, err, row.want)
		}
	}
}
