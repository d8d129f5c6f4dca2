package docker

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// TestDaemonReplaced: a daemon that is replaced by one which speaks other versions of the API is spoken to by those, within two calls.
func TestDaemonReplaced(t *testing.T) {
	for _, row := range []struct{ before, after, least string }{{"1.41", "1.52", "1.44"}, {"1.52", "1.41", "1.12"}} {
		t.Run(row.before+" to "+row.after, func(t *testing.T) {
			var version atomic.Value
			version.Store([2]string{row.before, "1.12"})
			sock := filepath.Join(t.TempDir(), "s")
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				v := version.Load().([2]string)
				w.Header().Set("Api-Version", v[0])
				asked, _, versioned := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v"), "/")
				minor := func(s string) (n int) { _, _ = fmt.Sscanf(s, "1.%d", &n); return n }
				switch {
				case !versioned || strings.HasSuffix(r.URL.Path, "/_ping"):
				case minor(asked) > minor(v[0]) || minor(asked) < minor(v[1]):
					w.WriteHeader(http.StatusBadRequest)
					_, _ = fmt.Fprintf(w, `{"message":"client version %s is too new or old. The API versions are %s to %s"}`, asked, v[1], v[0])
				default:
					_, _ = io.WriteString(w, exited)
				}
			}))
			server.Listener = listenAt(t, sock)
			server.Start()
			defer server.Close()
			l := lifeAt(t, "unix://"+sock)
			if _, err := l.inspect(t.Context(), "x"); err != nil {
				t.Fatal(err)
			}
			version.Store([2]string{row.after, row.least})
			if _, err := l.inspect(t.Context(), "x"); err == nil {
				t.Error("it took the version that it does not speak")
			}
			if c, err := l.inspect(t.Context(), "x"); err != nil || c.State.Status != "exited" {
				t.Errorf("it is asked as the one before was: %v", err)
			}
		})
	}
}
