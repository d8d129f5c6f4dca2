package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/credentials"
	"github.com/moby/moby/api/pkg/authconfig"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// platform is an operating system and a machine, in the names of Go.
type platform struct{ os, arch, variant string }

func parsePlatform(s string) platform {
	parts := append(strings.Split(s, "/"), "", "", "")
	p := platform{parts[0], parts[1], parts[2]}
	switch p.arch {
	case "x86_64":
		p.arch = "amd64"
	case "aarch64":
		p.arch = "arm64"
	}
	return p
}

// takes reports whether an image for another platform does where this one is asked for: any that says what it is for where none is.
func (p platform) takes(found platform) bool {
	if p.os == "" && p.arch == "" {
		return found.os != "" || found.arch != ""
	}
	return found.os == p.os && found.arch == p.arch && (p.variant == "" || p.plain() == found.plain())
}

// plain is a platform without the variant that goes without saying.
func (p platform) plain() platform {
	if p.arch == "arm64" && p.variant == "v8" || p.arch == "amd64" && p.variant == "v1" {
		p.variant = ""
	}
	return p
}

func (p platform) spec() *ocispec.Platform {
	return &ocispec.Platform{OS: p.os, Architecture: p.arch, Variant: p.variant}
}

func (p platform) String() string { return strings.TrimSuffix(p.os+"/"+p.arch+"/"+p.variant, "/") }

// parseRef reads a reference. host:5000/img is its tag latest, never all tags.
func parseRef(s string) (reference.Named, error) {
	if _, err := image.ParseRef(s); err != nil {
		return nil, err
	}
	named, err := reference.ParseNormalizedNamed(strings.TrimPrefix(s, "docker://"))
	if err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", s, berth.ErrInvalid, err)
	}
	return reference.TagNameOnly(named), nil
}

// idForm is an image's ID, or its beginning, as it is listed.
var idForm = regexp.MustCompile(`^[a-f0-9]{12,64}$`)

// byID finds an image that is asked for by its ID; false if name is no ID, or may be a name as well.
func (e *Engine) byID(ctx context.Context, name string) (berth.Image, bool, error) {
	digits, prefixed := strings.CutPrefix(name, "sha256:")
	if !idForm.MatchString(digits) {
		return berth.Image{}, false, nil
	}
	host, err := e.daemon(ctx)
	if err != nil {
		return berth.Image{}, false, err
	}
	img, _, err := e.imageFor(ctx, name, host.platform)
	switch {
	case err == nil && strings.HasPrefix(strings.TrimPrefix(img.ID, "sha256:"), digits):
		img.Ref = img.ID
		return img, true, nil
	case err != nil && !is(err, berth.ErrNotFound):
		return berth.Image{}, false, err
	case prefixed:
		return berth.Image{}, false, fmt.Errorf("image %s: %w: no image with this ID is here", name, berth.ErrNotFound)
	}
	return berth.Image{}, false, nil
}

// Image finds or pulls an image. req.Ref may also be the ID of an image that is here.
func (e *Engine) Image(ctx context.Context, req berth.ImageRequest) (berth.Image, error) {
	if img, ok, err := e.byID(ctx, req.Ref); ok || err != nil {
		return img, err
	}
	named, err := parseRef(req.Ref)
	if err != nil {
		return berth.Image{}, err
	}
	host, err := e.daemon(ctx)
	if err != nil {
		return berth.Image{}, err
	}
	want := host.platform
	if req.Platform != "" {
		want = parsePlatform(req.Platform)
	}
	if req.Policy != berth.PullAlways {
		img, there, err := e.imageFor(ctx, named.String(), want)
		switch {
		case err == nil && want.takes(platformOf(img)):
			e.useImage(img)
			return img, nil
		case err == nil && req.Policy == berth.PullNever:
			return berth.Image{}, fmt.Errorf("image %s: %w for %s: what is there is for %s", named, berth.ErrNotFound, want, there)
		case err != nil && (req.Policy == berth.PullNever || !is(err, berth.ErrNotFound)):
			return berth.Image{}, err
		}
	}
	if req.Insecure && !image.Loopback(named.String()) {
		return berth.Image{}, fmt.Errorf("pull %s: insecure registries: %w: the daemon decides; name %s in insecure-registries of its configuration", named, berth.ErrUnsupported, reference.Domain(named))
	}
	err = e.pulls.do(ctx, e.ctx, named.String()+" "+want.String(), req.Progress, func(ctx context.Context, tell func(berth.Progress)) error {
		return tryPull(ctx, pullPause, tell, func() error { return e.pull(ctx, named, want, req.Platform != "", tell) })
	})
	if err != nil {
		return berth.Image{}, fmt.Errorf("pull %s: %w", named, err)
	}
	img, there, err := e.imageFor(ctx, named.String(), want)
	if err != nil {
		return berth.Image{}, err
	}
	e.claimImage(img, true)
	switch found := platformOf(img); {
	case req.Platform == "" || want.takes(found):
		return img, nil
	case found.os == "":
		return berth.Image{}, fmt.Errorf("image %s for %s: %w: the daemon tells of its own platform alone; with API 1.%d (Docker 28.1) of others, too", named, want, berth.ErrUnsupported, apiPlatform)
	default:
		return berth.Image{}, fmt.Errorf("pull %s: %w for %s: what the registry has is for %s", named, berth.ErrNotFound, want, there)
	}
}

// imageFor is the image that the daemon has under a reference for a platform, else one for another, and for what it has any.
func (e *Engine) imageFor(ctx context.Context, ref string, want platform) (img berth.Image, there platforms, err error) {
	res, there, err := e.inspectFor(ctx, ref, want)
	if err != nil {
		return berth.Image{}, nil, err
	}
	return imageOf(ref, res), there, nil
}

// platforms are those for which a daemon has an image.
type platforms []platform

func (ps platforms) String() string {
	var words []string
	for _, p := range ps {
		words = append(words, p.String())
	}
	return strings.Join(words, ", ")
}

// apiPlatform is the minor version of the API since which a daemon is asked for an image of one platform.
const apiPlatform = 49

// inspectFor is imageFor in the daemon's words. Containerd's store of images may have several platforms under one reference, and one ID. It
// tells unasked of the daemon's own, though that be in the image's index alone.
func (e *Engine) inspectFor(ctx context.Context, ref string, want platform) (res client.ImageInspectResult, there platforms, err error) {
	ctx, cancel := e.call(ctx)
	defer cancel()
	if res, err = e.api().ImageInspect(ctx, ref); err != nil {
		return res, nil, wrap(ctx, "image "+ref, err)
	}
	found := platform{res.Os, res.Architecture, res.Variant}
	if want.takes(found) || apiBefore(e.api().ClientVersion(), apiPlatform) {
		return res, platforms{found}, nil
	}
	all, err := e.api().ImageInspect(ctx, ref, client.ImageInspectWithManifests(true))
	if err != nil {
		return res, nil, wrap(ctx, "image "+ref, err)
	}
	for _, m := range all.Manifests {
		if m.Kind == imagetypes.ManifestKindImage && m.Available && m.ImageData != nil {
			there = append(there, platform{m.ImageData.Platform.OS, m.ImageData.Platform.Architecture, m.ImageData.Platform.Variant})
		}
	}
	if len(there) == 0 { // another store, which has one platform
		return res, platforms{found}, nil
	}
	found = there[max(0, slices.IndexFunc(there, want.takes))]
	// By its ID, lest it be another one by now. That stays: only by the index's a container is made.
	if res, err = e.api().ImageInspect(ctx, all.ID, client.ImageInspectWithPlatform(found.spec())); err != nil {
		return res, nil, wrap(ctx, "image "+ref+" for "+found.String(), err)
	}
	res.ID, res.Os, res.Architecture, res.Variant = all.ID, found.os, found.arch, found.variant
	return res, there, nil
}

// platformOf is what an image is for.
func platformOf(img berth.Image) platform {
	return platform{img.Config.OS, img.Config.Architecture, img.Config.Variant}
}

// imagePlatform is the platform that the daemon is told when it makes a container of an image; nil where that is its own, or
// the daemon is told none.
func (e *Engine) imagePlatform(host *hostInfo, img berth.Image) *ocispec.Platform {
	p := platformOf(img)
	if host.podman || p.os == "" || p.arch == "" || p.plain() == host.plain() || apiBefore(e.api().ClientVersion(), 41) {
		return nil
	}
	return p.spec()
}

func imageOf(ref string, res client.ImageInspectResult) berth.Image {
	img := berth.Image{Ref: ref, ID: res.ID, Config: berth.ImageConfig{Architecture: res.Architecture, OS: res.Os, Variant: res.Variant}}
	for _, d := range res.RepoDigests {
		if c, err := reference.ParseNormalizedNamed(d); err == nil {
			if own, err := reference.ParseNormalizedNamed(ref); err == nil && c.Name() == own.Name() {
				_, img.Digest, _ = strings.Cut(d, "@")
			}
		}
	}
	if c := res.Config; c != nil {
		img.Config.User, img.Config.Env, img.Config.Entrypoint, img.Config.Cmd = c.User, c.Env, c.Entrypoint, c.Cmd
		img.Config.WorkingDir, img.Config.StopSignal, img.Config.Labels = c.WorkingDir, c.StopSignal, c.Labels
		img.Config.Volumes = slices.Sorted(maps.Keys(c.Volumes))
	}
	return img
}

func (e *Engine) pull(ctx context.Context, named reference.Named, p platform, chosen bool, tell func(berth.Progress)) error {
	opts := client.ImagePullOptions{}
	if chosen {
		opts.Platforms = []ocispec.Platform{*p.spec()}
	}
	auth, unread, err := e.credentials(named)
	if err != nil {
		return err
	}
	opts.RegistryAuth = auth
	err = e.pullWith(ctx, named, opts, tell)
	if unread != nil && is(err, berth.ErrDenied) {
		return fmt.Errorf("%w; there were no credentials, as Docker's configuration cannot be read: %w", err, unread)
	}
	return err
}

func (e *Engine) pullWith(ctx context.Context, named reference.Named, opts client.ImagePullOptions, tell func(berth.Progress)) error {
	tell(berth.Progress{Phase: "resolve"})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(e.cfg.Stall, func() {
		cancel(&stalledError{e.cfg.Stall})
	})
	defer stalled.Stop()
	res, err := e.api().ImagePull(ctx, named.String(), opts)
	if err != nil {
		return wrap(ctx, "daemon", err)
	}
	defer func() { _ = res.Close() }()
	layers := layersTold{}
	for m, err := range res.JSONMessages(ctx) {
		stalled.Reset(e.cfg.Stall)
		if err != nil {
			return wrap(ctx, "daemon", err)
		}
		if m.Error != nil {
			return wrap(ctx, "daemon", m.Error)
		}
		if p, ok := layers.told(&m); ok {
			tell(p)
		}
	}
	tell(berth.Progress{Phase: "done"})
	return nil
}

// layersTold is what a daemon has told of the layers of an image that it pulls.
type layersTold map[string]berth.Progress

// told reads one more message. Most say nothing of sizes: they are as they were.
func (ls layersTold) told(m *jsonstream.Message) (berth.Progress, bool) {
	if m.ID == "" || m.Progress == nil {
		return berth.Progress{}, false
	}
	p := ls[m.ID]
	p.Layer, p.Phase = m.ID, "download"
	if (m.Progress.Current > 0 || m.Progress.Total > 0) && m.Progress.Units == "" { // else they are no bytes
		p.Done, p.Total = m.Progress.Current, m.Progress.Total
	}
	switch {
	case strings.HasPrefix(m.Status, "Retrying in "):
		return berth.Progress{Phase: "retry", Why: "layer " + m.ID + ": the daemon could not fetch it"}, true
	case m.Status == "Extracting":
		p.Phase = "unpack"
	case m.Status == "Download complete":
		p.Done = p.Total
	case m.Status == "Pull complete", m.Status == "Already exists":
		p.Phase, p.Done = "done", p.Total
	}
	ls[m.ID] = p
	return p, true
}

// stalledError is that the daemon has told nothing of a pull.
type stalledError struct{ after time.Duration }

func (e *stalledError) Error() string {
	return fmt.Sprintf("%v: the daemon has told of no progress for %v", berth.ErrUnavailable, e.after)
}
func (e *stalledError) Unwrap() error { return berth.ErrUnavailable }

// A pull is tried as often, and with the same pauses, as on the embedded engine.
const (
	pullTries    = 6
	refusedTries = 3 // where no connection comes about, which rarely changes within seconds
	pullPause    = 250 * time.Millisecond
)

// Daemons tell what became of a pull in words alone. passing are those of what may do better later, which the embedded engine
// tries again, too: answers of busy registries, and connections that broke, were late, or did not come about. lasting are those of
// what does not, though it may have such words beside.
var (
	passing = regexp.MustCompile(`(HTTP |: |registry )(408|429|5\d\d)\b|toomanyrequests|(?i:too many requests|service unavailable|bad gateway|internal server error|` +
		`timeout|timed out|deadline exceeded)|\bEOF\b|connection reset|broken pipe|closed network connection|closed idle connection|client connection lost|` +
		`GOAWAY|stream error|server misbehaving|failure in name resolution|` + dials)
	lasting = regexp.MustCompile(`no such host|server gave HTTP response to HTTPS client|x509: |tls: |no basic auth credentials|failed to register layer`)
	dial    = regexp.MustCompile(dials)
)

// dials are words of connections that did not come about.
const dials = `\bdial (tcp|udp)|connection refused|no route to host|network is unreachable`

// tryPull makes a pull again that has failed and may do better later, as far as its words tell. Of one in which the daemon itself
// is gone, or tells nothing, who waits hears at once. tell is told of those that failed before another.
func tryPull(ctx context.Context, pause time.Duration, tell func(berth.Progress), pull func() error) error {
	for n := 1; ; n++ {
		err := pull()
		_, stalled := errors.AsType[*stalledError](err)
		if !is(err, berth.ErrUnavailable) || n == pullTries || stalled || client.IsErrConnectionFailed(err) || !passing.MatchString(err.Error()) ||
			lasting.MatchString(err.Error()) || n == refusedTries && dial.MatchString(err.Error()) {
			return err
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		tell(berth.Progress{Phase: "retry", Why: fmt.Sprintf("try %d of %d: %v", n, pullTries, err)})
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause << (n - 1)):
		}
	}
}

// credentials are those of the Docker configuration and its helpers, for the image's registry. What of the configuration
// cannot be read is done without, as the docker command does: the registry may want none; unread says why it cannot.
func (e *Engine) credentials(named reference.Named) (auth string, unread, err error) {
	file, err := config.Load(configDir(os.Getenv))
	if err != nil {
		unread = err
		e.cfg.Logger.Warn("Docker's configuration cannot be read, and images are pulled without its credentials", "error", err)
	}
	if !file.ContainsAuth() {
		file.CredentialsStore = credentials.DetectDefaultStore(file.CredentialsStore)
	}
	host := reference.Domain(named)
	if host == "docker.io" {
		host = "https://index.docker.io/v1/"
	}
	a, err := file.GetAuthConfig(host)
	if err != nil {
		return "", unread, fmt.Errorf("credentials for %s: %w: %w", host, berth.ErrDenied, err)
	}
	auth, err = authconfig.Encode(registry.AuthConfig{
		Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	})
	return auth, unread, err
}

// pulls lets all who wait for the same image share one pull, which ends when nobody waits any more.
type pulls struct {
	mu sync.Mutex
	by map[string]*pull
}

type pull struct {
	done    chan struct{}
	err     error
	waiters int
	cancel  context.CancelCauseFunc
	tell    []func(berth.Progress)
}

func (ps *pulls) do(ctx, life context.Context, key string, tell func(berth.Progress), f func(context.Context, func(berth.Progress)) error) error {
	ps.mu.Lock()
	p := ps.by[key]
	if p == nil {
		p = &pull{done: make(chan struct{})}
		var pctx context.Context
		pctx, p.cancel = context.WithCancelCause(life)
		if ps.by == nil {
			ps.by = map[string]*pull{}
		}
		ps.by[key] = p
		go func() { // ends with the pull, which the last waiter or the engine's end cancels
			defer p.cancel(nil)
			err := f(pctx, func(pr berth.Progress) {
				ps.mu.Lock()
				all := slices.Clone(p.tell)
				ps.mu.Unlock()
				for _, t := range all {
					t(pr)
				}
			})
			ps.mu.Lock()
			defer ps.mu.Unlock()
			p.err = err
			if ps.by[key] == p {
				delete(ps.by, key)
			}
			close(p.done)
		}()
	}
	p.waiters++
	if tell != nil {
		p.tell = append(p.tell, tell)
	}
	ps.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.waiters--; p.waiters == 0 {
		if ps.by[key] == p {
			delete(ps.by, key)
		}
		p.cancel(context.Cause(ctx))
	}
	return context.Cause(ctx)
}
