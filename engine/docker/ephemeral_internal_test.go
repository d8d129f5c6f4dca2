package docker

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// TestEndsBeforeItIsAttachedToAgain: what an ephemeral container wrote while its daemon was away is all there if it was in its pipes, though
// nobody could attach to it before it had ended. If it was not, the exit says that some may be missing.
func TestEndsBeforeItIsAttachedToAgain(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		left   *rest
		want   string
		detail string
	}{
		{"all was in its pipes", &rest{Stdout: []byte("down\n"), Whole: true, Read: time.Now()}, "up\ndown\n", ""},
		{"somebody else has read of them", &rest{Stdout: []byte("wn\n"), Read: time.Now()}, "up\nwn\n", "what it wrote last may be missing"},
		{"its pipes were not had", nil, "up\n", "what it wrote last may be missing"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var tried atomic.Bool
			hangUp := func(w http.ResponseWriter) {
				if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
					_ = conn.Close()
				}
			}
			l := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/events"):
					_, _ = io.WriteString(w, itStarted)
				case strings.HasSuffix(r.URL.Path, "/attach"):
					defer tried.Store(true)
					hangUp(w)
				case strings.HasSuffix(r.URL.Path, "/wait") || !tried.Load():
					hangUp(w)
				default:
					now := time.Now().UTC().Format(time.RFC3339Nano)
					_, _ = fmt.Fprintf(w, `{"Id":"x","State":{"Status":"exited","ExitCode":7,"StartedAt":%q,"FinishedAt":%[1]q}}`, now)
				}
			})
			l.rec.Spec.NoInit, l.rest, l.sb = true, row.left, &Sandbox{e: l.e}
			l.e.bornAt = time.Now().Add(time.Minute) // the daemon that is there
			o := &output{l: l, ephemeral: true, out: newSink(t, "stdout", ""), err: newSink(t, "stderr", "")}
			log := o.out.w.Path()
			stream, daemon := io.Pipe()
			o.set(stream, stream)
			go func() {
				_, _ = io.WriteString(daemon, frame(1, "up\n"))
				time.Sleep(2 * justNow) // it is not cut off in the middle of what it writes
				_ = daemon.Close()
			}()
			if err := l.follow(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			if e := l.exit; e == nil || e.Reason != berth.Exited || e.Code != 7 || (e.Detail == "") != (row.detail == "") || !strings.Contains(e.Detail, row.detail) {
				t.Errorf("exit %+v, want code 7 and the detail %q", e, row.detail)
			}
			if got, err := os.ReadFile(log); err != nil || string(got) != row.want {
				t.Errorf("its log has %q, %v; want %q", got, err, row.want)
			}
		})
	}
}
