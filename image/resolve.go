package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-project/berth"
)

// layersMax leaves room below overlay's limit of 500 for layers that are made here.
const layersMax = 400

// blobs gives the parts of an image by digest: a registry, an archive or a layout.
type blobs interface {
	// manifest reads a manifest or index whole.
	manifest(ctx context.Context, digest string) ([]byte, error)
	// config reads an image's configuration whole.
	config(ctx context.Context, digest string, size int64) ([]byte, error)
}

// resolved is an image of which all is known but the content of its layers.
type resolved struct {
	digest string // of the manifest
	index  string // of the index that named it, or ""
	id     string
	config *v1.ConfigFile
	layers []v1.Descriptor // lowest first
	pulled bool            // from a registry
}

// resolve goes from a manifest or index to the image for a platform.
func resolve(ctx context.Context, from blobs, digest string, body []byte, want platform) (resolved, error) {
	var r resolved
	for depth := 0; ; depth++ {
		var m struct {
			v1.Manifest
			Manifests []v1.Descriptor `json:"manifests"`
		}
		if err := json.Unmarshal(body, &m); err != nil {
			return resolved{}, fmt.Errorf("%w: manifest %s is no JSON: %w", berth.ErrInvalid, digest, err)
		}
		if m.Manifests != nil && (m.Layers != nil || m.Config.Digest.Hex != "") {
			return resolved{}, fmt.Errorf("%w: manifest %s is both an index and an image, so that nobody knows which is meant", berth.ErrInvalid, digest)
		}
		if m.Manifests == nil {
			r.digest = digest
			return r, r.fill(ctx, from, &m.Manifest, want)
		}
		if depth > 2 {
			return resolved{}, fmt.Errorf("%w: its index names indexes only", berth.ErrInvalid)
		}
		d, err := choose(m.Manifests, want)
		if err != nil {
			return resolved{}, err
		}
		if r.index == "" {
			r.index = digest
		}
		digest = d.Digest.String()
		if body, err = from.manifest(ctx, digest); err != nil {
			return resolved{}, err
		}
		if got := digestOf(body); got != digest {
			return resolved{}, fmt.Errorf("%w: manifest digest mismatch: it should be %s and what came is %s", berth.ErrInvalid, digest, got)
		}
	}
}

// fill reads what a manifest says and the configuration that it names.
func (r *resolved) fill(ctx context.Context, from blobs, m *v1.Manifest, want platform) error {
	switch {
	case m.SchemaVersion == 1:
		return fmt.Errorf("%w: its manifest is of schema 1, which is long deprecated; push it again with a current tool", berth.ErrUnsupported)
	case !isImageConfig(m.Config.MediaType):
		return fmt.Errorf("%w: it is no container image but %s", berth.ErrUnsupported, m.Config.MediaType)
	case len(m.Layers) > 0 && strings.Contains(string(m.Layers[0].MediaType), "sylabs.sif"):
		return fmt.Errorf("%w: it is a SIF file and no container image", berth.ErrUnsupported)
	}
	for _, l := range m.Layers {
		if strings.HasSuffix(string(l.MediaType), "+encrypted") {
			return fmt.Errorf("%w: its layers are encrypted", berth.ErrUnsupported)
		}
		if l.Size < 0 {
			return fmt.Errorf("%w: its manifest has a layer of %d bytes", berth.ErrInvalid, l.Size)
		}
	}
	body, err := from.config(ctx, m.Config.Digest.String(), m.Config.Size)
	if err != nil {
		return err
	}
	if got := digestOf(body); got != m.Config.Digest.String() {
		return fmt.Errorf("%w: configuration digest mismatch: it should be %s and what came is %s", berth.ErrInvalid, m.Config.Digest, got)
	}
	r.layers = m.Layers
	return r.setConfig(body, want)
}

// setConfig takes a configuration and checks it against layers and platform.
func (r *resolved) setConfig(body []byte, want platform) error {
	r.id = digestOf(body)
	r.config = &v1.ConfigFile{}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(r.config); err != nil {
		return fmt.Errorf("%w: its configuration cannot be read: %w", berth.ErrInvalid, err)
	}
	if len(r.layers) > layersMax {
		return fmt.Errorf("%w: it has %d layers, and overlay takes %d at most", berth.ErrUnsupported, len(r.layers), layersMax)
	}
	if n := len(r.config.RootFS.DiffIDs); n != len(r.layers) {
		return fmt.Errorf("%w: its manifest has %d layers and its configuration %d", berth.ErrInvalid, len(r.layers), n)
	}
	for _, d := range r.config.RootFS.DiffIDs {
		if !digestForm.MatchString(d.String()) {
			return fmt.Errorf("%w: its configuration names a layer %q, which is no sha256 digest", berth.ErrInvalid, d)
		}
	}
	if have := platformOf(r.config); r.config.Architecture != "" && want.rank(have) == 0 {
		return notForPlatform(want, []platform{have})
	}
	return nil
}

func isImageConfig(t types.MediaType) bool {
	return t == "" || t == types.OCIConfigJSON || t == types.DockerConfigJSON || t == "application/octet-stream"
}

func platformOf(c *v1.ConfigFile) platform {
	os := c.OS
	if os == "" {
		os = "linux"
	}
	return normalPlatform(os, c.Architecture, c.Variant)
}

// choose finds the manifest of an index that suits a platform best.
func choose(manifests []v1.Descriptor, want platform) (v1.Descriptor, error) {
	var best v1.Descriptor
	var have []platform
	rank := 0
	for _, d := range manifests {
		if d.Platform == nil {
			// A layout's index names images without saying for what they are made.
			if rank == 0 && (d.MediaType.IsImage() || d.MediaType.IsIndex()) {
				best, rank = d, 1
			}
			continue
		}
		p := normalPlatform(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant)
		if p.os == "unknown" {
			continue // attestations
		}
		have = append(have, p)
		if n := want.rank(p); n > rank {
			best, rank = d, n
		}
	}
	if rank == 0 {
		return v1.Descriptor{}, notForPlatform(want, have)
	}
	return best, nil
}

func notForPlatform(want platform, have []platform) error {
	names := []string{}
	for _, p := range have {
		if p.arch != "" {
			names = append(names, p.String())
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		names = []string{"none"}
	}
	return fmt.Errorf("%w: it is not made for %s; there is: %s", berth.ErrNotFound, want, strings.Join(names, ", "))
}

// head reads the manifest or index that the reference itself names.
func (r *registry) head(ctx context.Context) (digest string, body []byte, err error) {
	what := r.ref.Tag
	if r.ref.Digest != "" {
		what = r.ref.Digest
	}
	body, header, err := r.get(ctx, r.url("manifests", what), manifestTypes, manifestMax)
	if err != nil {
		return "", nil, r.missing(ctx, err)
	}
	if t := header.Get("Content-Type"); strings.Contains(t, "manifest.v1+prettyjws") || strings.Contains(t, "distribution.manifest.v1") {
		return "", nil, fmt.Errorf("%w: its manifest is of schema 1, which is long deprecated; push it again with a current tool", berth.ErrUnsupported)
	}
	digest = digestOf(body)
	wanted := r.ref.Digest
	if wanted == "" {
		wanted = header.Get("Docker-Content-Digest")
	}
	if strings.HasPrefix(wanted, "sha256:") && wanted != digest {
		return "", nil, fmt.Errorf("%w: manifest digest mismatch: it should be %s and what came is %s", berth.ErrInvalid, wanted, digest)
	}
	return digest, body, nil
}

// missing tells an image that is not there from a tag that is not.
func (r *registry) missing(ctx context.Context, err error) error {
	var status *transport.Error
	if !errors.As(err, &status) || status.StatusCode != http.StatusNotFound {
		return r.kind(err)
	}
	noImage := fmt.Errorf("%w: registry %s has no image %s", berth.ErrNotFound, r.ref.Registry, r.ref.Repository)
	for _, d := range status.Errors {
		if d.Code == transport.NameUnknownErrorCode {
			return noImage
		}
	}
	body, _, err := r.get(ctx, r.base+"/tags/list", "", manifestMax)
	if errors.As(err, &status) && status.StatusCode == http.StatusNotFound {
		return noImage
	}
	var list struct {
		Tags []string `json:"tags"`
	}
	if err == nil {
		_ = json.Unmarshal(body, &list) // what it would say is a help only
	}
	if r.ref.Digest != "" {
		return fmt.Errorf("%w: %s has no image with the digest %s", berth.ErrNotFound, r.ref.Name(), r.ref.Digest)
	}
	return fmt.Errorf("%w: %s has no tag %q%s", berth.ErrNotFound, r.ref.Name(), r.ref.Tag, someTags(list.Tags))
}

// someTags lists tags as a hint.
func someTags(tags []string) string {
	const most = 8
	if len(tags) == 0 {
		return ""
	}
	if len(tags) <= most {
		return "; there is: " + strings.Join(tags, ", ")
	}
	return fmt.Sprintf("; there are %d, such as %s", len(tags), strings.Join(tags[len(tags)-most:], ", "))
}

func (r *registry) manifest(ctx context.Context, digest string) ([]byte, error) {
	body, _, err := r.get(ctx, r.url("manifests", digest), manifestTypes, manifestMax)
	return body, r.kind(err)
}

func (r *registry) config(ctx context.Context, digest string, _ int64) ([]byte, error) {
	body, _, err := r.get(ctx, r.url("blobs", digest), "", configMax)
	return body, r.kind(err)
}
