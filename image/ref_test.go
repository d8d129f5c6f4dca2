package image

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

const testDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseRef(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"debian", "docker.io/library/debian:latest"},
		{"debian:12", "docker.io/library/debian:12"},
		{"library/debian", "docker.io/library/debian:latest"},
		{"docker.io/debian", "docker.io/library/debian:latest"},
		{"index.docker.io/a/b:c", "docker.io/a/b:c"},
		{"docker://debian:12", "docker.io/library/debian:12"},
		{"a/b/c", "docker.io/a/b/c:latest"},
		{"host:5000/img", "host:5000/img:latest"},
		{"host:5000/img:v1", "host:5000/img:v1"},
		{"localhost/img", "localhost/img:latest"},
		{"localhost:5000/a/b", "localhost:5000/a/b:latest"},
		{"[::1]:5000/img", "[::1]:5000/img:latest"},
		{"127.0.0.1/img", "127.0.0.1/img:latest"},
		{"quay.io/a/b@" + testDigest, "quay.io/a/b@" + testDigest},
		{"debian:12@" + testDigest, "docker.io/library/debian@" + testDigest},
		{"HOST.example/img", "HOST.example/img:latest"},
		{"HOST/img", "HOST/img:latest"},
		{"a__b/c-d.e_f", "docker.io/a__b/c-d.e_f:latest"},
	} {
		got, err := ParseRef(c.in)
		if err != nil || got.String() != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.in, got, err, c.want)
		}
	}
}

func TestParseRefErrors(t *testing.T) {
	for _, c := range []struct {
		in   string
		kind error
		text string // in the message
	}{
		{"", berth.ErrInvalid, "names no image"},
		{"Debian", berth.ErrInvalid, "lower case"},
		{"debian:", berth.ErrInvalid, "no tag"},
		{"debian:-x", berth.ErrInvalid, "no tag"},
		{"debian:" + strings.Repeat("x", 129), berth.ErrInvalid, "no tag"},
		{"debian@sha256:12", berth.ErrInvalid, "no digest"},
		{"debian@" + strings.ToUpper(testDigest), berth.ErrInvalid, "no digest"},
		{"a//b", berth.ErrInvalid, "no image name"},
		{"a/", berth.ErrInvalid, "no image name"},
		{"a b", berth.ErrInvalid, "no image name"},
		{"a\nb", berth.ErrInvalid, "no image name"},
		{"-a.b/c", berth.ErrInvalid, "no registry host"},
		{"host:99999999/img", berth.ErrInvalid, "no registry host"},
		{"../x", berth.ErrInvalid, "image load"},
		{"./x.tar", berth.ErrInvalid, "image load"},
		{"/x.tar", berth.ErrInvalid, "image load"},
		{strings.Repeat("a", 300), berth.ErrInvalid, "no image name"},
		{strings.Repeat("a", 3000), berth.ErrInvalid, "longer than 1024"},
		{"library://lolcow", berth.ErrUnsupported, "Singularity library"},
		{"oras://host/x:y", berth.ErrUnsupported, "SIF"},
		{"shub://a/b", berth.ErrUnsupported, "Singularity Hub"},
		{"image.sif", berth.ErrUnsupported, "SIF"},
		{"/data/Image.SIF", berth.ErrUnsupported, "SIF"},
		{"docker-archive:x.tar", berth.ErrUnsupported, "berth image load"},
		{"oci:./dir", berth.ErrUnsupported, "berth image load"},
		{"file:///x.tar", berth.ErrUnsupported, "berth image load"},
		{"https://host/img", berth.ErrUnsupported, "https://"},
	} {
		got, err := ParseRef(c.in)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: got %q, error %v; want %v with %q", c.in, got, err, c.kind, c.text)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"debian", "a.b:5/c:d@" + testDigest, "[::1]/x", "docker://a/b", "localhost/x:y", "A/b", "a@b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			if !hasKind(err) || r != (Ref{}) {
				t.Fatalf("%q: %v, %v", s, r, err)
			}
			return
		}
		again, err := ParseRef(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %q, which is %q, %v", s, r, again, err)
		}
		if strings.ContainsAny(r.String(), " \n\x00?#%") || strings.Contains(r.Repository, "..") {
			t.Fatalf("%q is %q", s, r)
		}
	})
}

func TestPlatform(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"linux/amd64", "linux/amd64"},
		{"amd64", "linux/amd64"},
		{"linux/x86_64", "linux/amd64"},
		{"linux/arm64/v8", "linux/arm64"},
		{"aarch64", "linux/arm64"},
		{"linux/arm", "linux/arm/v7"},
		{"linux/arm/v6", "linux/arm/v6"},
		{"Linux/AMD64", "linux/amd64"},
		{"windows/amd64", "windows/amd64"},
	} {
		got, err := parsePlatform(c.in)
		if err != nil || got.String() != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{"/", "linux/", "a/b/c/d", "linux/am d64", "linux//v7"} {
		if got, err := parsePlatform(in); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%q: got %s, %v", in, got, err)
		}
	}
}

func TestPlatformRank(t *testing.T) {
	for _, c := range []struct {
		want, better, worse string // worse "" is none at all
	}{
		{"linux/amd64", "linux/amd64", "linux/amd64/v3"},
		{"linux/arm/v7", "linux/arm/v7", "linux/arm/v6"},
		{"linux/arm/v7", "linux/arm/v6", "linux/arm/v5"},
		{"linux/arm/v6", "linux/arm/v5", "linux/arm/v7"},
		{"linux/arm64", "linux/arm64/v8", "linux/arm64/v9"},
		{"linux/amd64/v3", "linux/amd64/v3", "linux/amd64/v2"},
		{"linux/amd64/v3", "linux/amd64/v2", "linux/amd64"},
		{"linux/amd64", "linux/amd64", "linux/arm64"},
		{"linux/amd64", "linux/amd64", "windows/amd64"},
	} {
		var p [3]platform
		for i, s := range []string{c.want, c.better, c.worse} {
			var err error
			if p[i], err = parsePlatform(s); err != nil {
				t.Fatal(err)
			}
		}
		if b, w := p[0].rank(p[1]), p[0].rank(p[2]); b <= w {
			t.Errorf("for %s %s ranks %d and %s %d", c.want, c.better, b, c.worse, w)
		}
	}
}
