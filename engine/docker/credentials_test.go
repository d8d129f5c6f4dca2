package docker_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/google/go-containerregistry/pkg/registry"
)

// TestCredentials: a registry behind a password is asked with what Docker's configuration or its helpers have for it. A
// helper that is not there is named; a configuration that cannot be read is warned of, and the pull has no credentials.
func TestCredentials(t *testing.T) {
	const user, password = "me", "se:cret"
	bin := t.TempDir()
	helper := fmt.Sprintf("#!/bin/sh\nread host\n[ \"$1\" = get ] && printf '{\"ServerURL\":\"%%s\",\"Username\":\"%s\",\"Secret\":\"%s\"}' \"$host\"\n", user, password)
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-enginetest"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := httptest.NewServer(images)
	defer open.Close()
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="enginetest"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`, http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	defer guarded.Close()
	host := strings.TrimPrefix(guarded.URL, "http://")
	auths := func(password string) string {
		return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
	}
	const unread = "Docker's configuration cannot be read, and images are pulled without its credentials"
	for i, row := range []struct {
		name, config string
		kind         error
		says         string
		warned       int
	}{
		{"auths", auths(password), nil, "", 0},
		{"a wrong password", auths("other"), berth.ErrDenied, host, 0},
		{"a helper of the registry", fmt.Sprintf(`{"credHelpers":{%q:"enginetest"}}`, host), nil, "", 0},
		{"a helper of all", `{"credsStore":"enginetest"}`, nil, "", 0},
		{"a helper that is not there", fmt.Sprintf(`{"credHelpers":{%q:"nobody"}}`, host), berth.ErrDenied, "docker-credential-nobody", 0},
		{"none", `{}`, berth.ErrDenied, host, 0},
		{"a configuration that makes no sense", `{"auths":`, berth.ErrDenied, "config.json", 1},
		{"what is no base64", fmt.Sprintf(`{"auths":{%q:{"auth":"%%%%%%"}}}`, host), berth.ErrDenied, "config.json", 1},
	} {
		repo := fmt.Sprintf("/private/image%d", i)
		push(t, strings.TrimPrefix(open.URL, "http://")+repo, randomImage(t))
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(row.config), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DOCKER_CONFIG", dir)
		var log logged
		e, _ := newEngine(t, docker.Config{Logger: slog.New(&log)})
		_, err := e.Image(t.Context(), berth.ImageRequest{Ref: host + repo})
		if !errors.Is(err, row.kind) || err != nil && (row.kind == nil || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), password)) {
			t.Errorf("%s: %v; want %v, and %q", row.name, err, row.kind, row.says)
		}
		if n := log.count(unread); n != row.warned {
			t.Errorf("%s: warned %d times", row.name, n)
		}
	}
}
