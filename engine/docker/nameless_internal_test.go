package docker

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

// TestNameless: an archive of docker save keeps all but its names, and one in which these cannot be found is refused.
func TestNameless(t *testing.T) {
	t.Parallel()
	type file struct{ name, body, link string }
	for _, row := range []struct {
		name     string
		in, want []file
		says     string
	}{
		{
			"as saved",
			[]file{{"a/layer.tar", "layer", ""}, {"b/layer.tar", "", "../a/layer.tar"}, {"manifest.json", `[{"Config":"c","RepoTags":["x:1"],"Layers":["a","b"]}]`, ""}, {"repositories", "{}", ""}},
			[]file{{"a/layer.tar", "layer", ""}, {"b/layer.tar", "", "../a/layer.tar"}, {"manifest.json", `[{"Config":"c","Layers":["a","b"]}]`, ""}},
			"",
		},
		{
			"packed anew",
			[]file{{"./manifest.json", `[{"config":"c","repotags":["x:1"],"More":1}]`, ""}, {"./repositories", "{}", ""}},
			[]file{{"./manifest.json", `[{"More":1,"config":"c"}]`, ""}},
			"",
		},
		{
			"one image for two platforms",
			[]file{{"index.json", `{"schemaVersion":2,"manifests":[{"digest":"d","annotations":{"io.containerd.image.name":"x:1"}}]}`, ""}, {"manifest.json", `[{"Config":"c"},{"Config":"e"}]`, ""}},
			[]file{{"index.json", `{"manifests":[{"digest":"d"}],"schemaVersion":2}`, ""}, {"manifest.json", `[{"Config":"c"},{"Config":"e"}]`, ""}},
			"",
		},
		{"two images", []file{{"manifest.json", `[{"Config":"c"},{"Config":"e"}]`, ""}}, nil, "the archive holds 2 images"},
		{"a link", []file{{"manifest.json", "", "other.json"}}, nil, "manifest.json: invalid: it is no regular file"},
		{"no list", []file{{"manifest.json", `{}`, ""}}, nil, "manifest.json: invalid: json: "},
		{"no index", []file{{"index.json", `{}`, ""}}, nil, "index.json: invalid: "},
	} {
		var in, out bytes.Buffer
		w := tar.NewWriter(&in)
		for _, f := range row.in {
			h := tar.Header{Typeflag: tar.TypeReg, Name: f.name, Linkname: f.link, Size: int64(len(f.body)), Mode: 0o600}
			if f.link != "" {
				h.Typeflag = tar.TypeSymlink
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, f.body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		err := nameless(t.Context(), &out, &in, "new:1")
		if row.says != "" {
			if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), row.says) {
				t.Errorf("%s: %v; want %q", row.name, err, row.says)
			}
			continue
		}
		var got []file
		for r := tar.NewReader(&out); err == nil; {
			var h *tar.Header
			if h, err = r.Next(); err == nil {
				var body []byte
				body, err = io.ReadAll(r)
				got = append(got, file{h.Name, string(body), h.Linkname})
			}
		}
		if !errors.Is(err, io.EOF) || !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, %v; want %v", row.name, got, err, row.want)
		}
	}
}
