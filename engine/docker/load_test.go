package docker_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/image"
)

// TestLoadBroken: of an archive that cannot be read the daemon's own word is told, and it is the archive's fault.
func TestLoadBroken(t *testing.T) {
	t.Parallel()
	whole := archiveOf(t, "localhost/broken:1")
	for _, row := range []struct{ name, docker, podman string }{
		{"bogus", "unexpected EOF", "unexpected EOF|payload does not match any of the supported image formats"},
		{"no archive", "invalid tar header", "unexpected EOF|payload does not match any of the supported image formats"},
		{"cut off", "unexpected EOF", "unexpected EOF|payload does not match any of the supported image formats"},
		{"cut within a layer", "unexpected EOF", "unexpected EOF|payload does not match any of the supported image formats"},
	} {
		archive := map[string][]byte{
			"bogus":              []byte("bogus"),
			"no archive":         []byte(strings.Repeat("this is no archive ", 100)),
			"cut off":            whole.Bytes()[:700],
			"cut within a layer": cutLayer(t, whole.Bytes()),
		}[row.name]
		for _, d := range []struct{ name, host, says string }{{"docker", daemon(t).Host(), row.docker}, {"podman", podman(t).Host(), row.podman}} {
			e, _ := newEngine(t, docker.Config{Host: d.host})
			images, err := e.Images().LoadReader(t.Context(), bytes.NewReader(archive), image.LoadOptions{})
			if !errors.Is(err, berth.ErrInvalid) || !regexp.MustCompile(d.says).MatchString(err.Error()) {
				t.Errorf("%s, %s: %+v, %v; want %q", row.name, d.name, images, err, d.says)
			}
		}
	}
}

// cutLayer ends an archive in the middle of its largest file.
func cutLayer(t *testing.T, whole []byte) []byte {
	t.Helper()
	r := bytes.NewReader(whole)
	var size, at int64
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return whole[:at+size/2]
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Size > size {
			size, at = h.Size, int64(len(whole)-r.Len())
		}
	}
}
