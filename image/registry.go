package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-project/berth"
)

const (
	manifestMax = 8 << 20  // bytes of a manifest or index
	configMax   = 16 << 20 // bytes of an image's configuration
	userAgent   = "berth"
)

// manifestTypes are the manifests that are asked for.
var manifestTypes = strings.Join([]string{
	string(types.OCIImageIndex), string(types.DockerManifestList),
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
}, ", ")

// newTransport is an HTTP transport for registries. Layers are compressed already, and large reads go past
// its buffers.
func newTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // the standard library's own
	t.DisableCompression = true
	t.MaxIdleConnsPerHost = 8
	return t
}

// registry is one repository of a registry, logged in.
type registry struct {
	store  *Store
	ref    Ref
	base   string // "https://host/v2/repository"
	client *http.Client
	others *http.Client         // without credentials, for layers that lie elsewhere
	login  error                // why no credentials were found where some should be
	tell   func(berth.Progress) // of tries that fail
}

// connect logs in to the registry of ref.
func (s *Store) connect(ctx context.Context, ref Ref, insecure bool, tell func(berth.Progress)) (*registry, error) {
	host := ref.Registry
	if host == defaultRegistry {
		host = name.DefaultRegistry
	}
	opts := []name.Option{}
	if insecure || ref.loopback() {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", berth.ErrInvalid, err)
	}
	repo := reg.Repo(ref.Repository)
	r := &registry{store: s, ref: ref, tell: tell}
	auth, err := authn.Resolve(ctx, s.opts.Keychain, repo)
	if err != nil {
		s.log.Warn("no credentials for the registry; going on without", "registry", ref.Registry, "error", err)
		auth, r.login = authn.Anonymous, err
	}
	// The login finds out whether the registry speaks https; its transport sets the scheme that serves.
	r.base = "https://" + reg.RegistryStr() + "/v2/" + ref.Repository
	base, err := url.Parse(r.base)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", berth.ErrInvalid, err)
	}
	at := newPlace(ref.Registry, base)
	inner := s.transport(at, insecure, ref.loopback())
	r.others = &http.Client{Transport: s.transport(at, false, false)}
	err = s.try(ctx, tell, func(ctx context.Context) error {
		t, err := transport.NewWithContext(ctx, reg, auth, inner, []string{repo.Scope(transport.PullScope)})
		if err != nil {
			return err
		}
		r.client = &http.Client{Transport: t}
		return nil
	})
	if err != nil {
		return nil, r.kind(err)
	}
	return r, nil
}

// transport is the transport below the login: no http but where it is safe or asked for.
func (s *Store) transport(at *place, insecure, loopback bool) http.RoundTripper {
	inner, far := s.opts.Transport, s.away
	if t, ok := inner.(*http.Transport); ok && insecure {
		t = t.Clone()
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		t.TLSClientConfig.InsecureSkipVerify = true // the user asks for it by name
		inner, far = t, newAway(t)
	}
	// As the outermost, the user agent is in what goes to other places too.
	return transport.NewUserAgent(guard{at, inner, far, insecure, loopback}, userAgent)
}

// guard lets no request go out unencrypted, redirected and token requests neither, except from a registry on
// this machine to this machine: no other registry has a say in what is asked for here. Nor has a registry of
// the world a say in what is asked for at private addresses.
type guard struct {
	place    *place
	inner    http.RoundTripper
	away     *away
	insecure bool
	loopback bool // the registry is on this machine
}

// RoundTrip implements http.RoundTripper.
func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.insecure && (!g.loopback || !isLoopback(req.URL.Host)) {
		return nil, fmt.Errorf("%w: %s is asked for over http, which is not allowed beyond this machine", berth.ErrDenied, req.URL.Host)
	}
	return g.send(req)
}

func (r *registry) url(kind, what string) string { return r.base + "/" + kind + "/" + what }

// get reads a small thing whole, tries again included.
func (r *registry) get(ctx context.Context, url, accept string, limit int64) (body []byte, header http.Header, err error) {
	err = r.store.try(ctx, r.tell, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if accept != "" {
			req.Header.Set("Accept", accept)
		}
		resp, err := r.client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := transport.CheckError(resp, http.StatusOK); err != nil {
			return withRetryAfter(err, resp)
		}
		header = resp.Header
		body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
		if err == nil && int64(len(body)) > limit {
			return fmt.Errorf("%w: the answer has more than %d bytes", berth.ErrInvalid, limit)
		}
		return err
	})
	return body, header, err
}

// kind gives an error of the registry its kind, and one line that says what it means.
func (r *registry) kind(err error) error {
	var status *transport.Error
	var dns *net.DNSError
	switch {
	case err == nil || hasKind(err) || isContext(err):
		return err
	case errors.As(err, &status):
		return r.statusKind(status)
	case errors.As(err, &dns):
		return fmt.Errorf("%w: registry %s is not reachable: no such host: %s", berth.ErrUnavailable, r.ref.Registry, dns.Name)
	case isPlainHTTP(err):
		return fmt.Errorf("%w: registry %s speaks http, which is used beyond this machine only on explicit request", berth.ErrUnavailable, r.ref.Registry)
	case errors.Is(err, errStalled):
		return fmt.Errorf("%w: registry %s stalled: %w", berth.ErrUnavailable, r.ref.Registry, err)
	}
	return fmt.Errorf("%w: registry %s is not reachable: %w", berth.ErrUnavailable, r.ref.Registry, shorten(err))
}

// shorten takes the request's method and address off a client's error.
func shorten(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

func (r *registry) statusKind(e *transport.Error) error {
	switch e.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if r.login != nil {
			return fmt.Errorf("%w: no access to %s, or there is none: its credentials cannot be read: %w", berth.ErrDenied, r.ref.Name(), r.login)
		}
		return fmt.Errorf("%w: no access to %s, or there is no such image; log in with `docker login %s`", berth.ErrDenied, r.ref.Name(), r.ref.Registry)
	case http.StatusNotFound:
		return fmt.Errorf("%w: registry %s has not what was asked for: %s", berth.ErrNotFound, r.ref.Registry, statusText(e))
	case http.StatusTooManyRequests:
		return fmt.Errorf("%w: registry %s answers 429 Too Many Requests; log in or try again later", berth.ErrUnavailable, r.ref.Registry)
	}
	return fmt.Errorf("%w: registry %s answers %s", berth.ErrUnavailable, r.ref.Registry, statusText(e))
}

func statusText(e *transport.Error) string {
	s := fmt.Sprintf("%d %s", e.StatusCode, http.StatusText(e.StatusCode))
	if len(e.Errors) > 0 {
		s += ": " + e.Errors[0].String()
	}
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return strings.Join(strings.Fields(s), " ")
}
