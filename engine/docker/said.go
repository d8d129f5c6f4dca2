package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
)

// said is what a daemon says of itself.
type said struct {
	system.Info
	podman, rootless bool
	version          client.ServerVersionResult // Podman's is empty: partsOf asks for it
	asked, answered  time.Time
}

// turn has one caller at a time ask the daemon what it is: Podman runs programs and asks the package manager for each
// answer, which takes it half a second of the host's processors.
func (e *Engine) turn(ctx context.Context) (end func(), err error) {
	select {
	case e.asking <- struct{}{}:
		return func() { <-e.asking }, nil
	case <-ctx.Done():
		return nil, wrapHost(ctx, "docker info", context.Cause(ctx))
	}
}

// says asks the daemon what it is. An answer to somebody who has asked later is taken, and Podman's last that is no older
// than age.
func (e *Engine) says(ctx context.Context, age time.Duration) (*said, error) {
	came := time.Now()
	end, err := e.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if s := e.said; s != nil && (s.podman && time.Since(s.answered) <= age || !s.asked.Before(came)) {
		return s, nil
	}
	s, err := e.ask(ctx)
	if err == nil {
		e.said = s
	}
	return s, err
}

func (e *Engine) ask(ctx context.Context) (*said, error) {
	// The client asks this before its first call in any case. Who does not answer is told of by the next.
	if !e.isPodman.Load() {
		_, _ = e.api().Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	}
	if e.isPodman.Load() {
		return e.askPodman(ctx)
	}
	s := &said{asked: time.Now()}
	info, err := e.api().Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, wrapHost(ctx, "docker info", err)
	}
	s.Info, s.answered = info.Info, time.Now()
	if s.version, err = e.api().ServerVersion(ctx, client.ServerVersionOptions{}); err != nil {
		return nil, wrapHost(ctx, "docker version", err)
	}
	// A service that was being started as it was asked, or a proxy before it.
	if e.isPodman.Load() || slices.ContainsFunc(s.version.Components, func(c system.ComponentVersion) bool { return c.Name == "Podman Engine" }) {
		e.isPodman.Store(true)
		return e.askPodman(ctx)
	}
	s.rootless = slices.Contains(s.SecurityOptions, "name=rootless")
	return s, nil
}

// heard looks at each answer of the daemon for what only Podman's have, and for the version of its API.
func (e *Engine) heard(r *http.Response) {
	if strings.HasPrefix(r.Header.Get("Server"), "Libpod/") {
		e.isPodman.Store(true)
	}
	now := r.Header.Get("Api-Version")
	if had := e.version.Load(); now != "" && (had == nil || *had != now) {
		e.version.Store(&now)
		e.another.Store(had != nil)
	}
}

// api is the client of the daemon. It agrees with that on a version of the API once, so there is a new one when the daemon has told
// that its newest is another: it was replaced, and may speak that version no more, or not yet.
func (e *Engine) api() *client.Client {
	if e.another.CompareAndSwap(true, false) {
		now, err := connect(e.at, client.WithHTTPResponseHook(e.heard))
		if err != nil { // of what it is made of, such as files of TLS
			e.cfg.Logger.Warn("the Docker daemon is of another version, and no new client of it can be made", "error", err)
			e.another.Store(true)
			return e.client.Load()
		}
		_ = e.client.Swap(now).Close() // what runs on its connections goes on
	}
	return e.client.Load()
}

// askPodman asks Podman's service, whose answer has more in it than Docker's.
func (e *Engine) askPodman(ctx context.Context) (*said, error) {
	s := &said{podman: true, asked: time.Now()}
	body, err := e.podman(ctx, http.MethodGet, "/v1.41/info", nil)
	if err != nil {
		return nil, wrapHost(ctx, "podman info", err)
	}
	defer func() { _ = body.Close() }()
	var more struct{ Rootless bool }
	raw, err := io.ReadAll(io.LimitReader(body, answerMax))
	if err == nil {
		err = cmp.Or(json.Unmarshal(raw, &s.Info), json.Unmarshal(raw, &more))
	}
	if err != nil {
		return nil, wrapHost(ctx, "podman info", err)
	}
	s.answered, s.rootless = time.Now(), more.Rootless
	return s, nil
}

// parts are what a daemon is made of.
type parts struct {
	all string // "docker 20.10.24, runc 1.1.5"
	oci string // how Podman names its OCI runtime
	// apparmor and selinux: it sets profiles, and labels.
	apparmor, selinux bool
}

// parts says what the daemon is made of. It asks Podman once.
func (e *Engine) parts(ctx context.Context) (parts, error) {
	host, err := e.daemon(ctx)
	if err != nil {
		return parts{}, err
	}
	e.mu.Lock()
	known := host.parts
	e.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	ctx, cancel := e.call(ctx)
	defer cancel()
	end, err := e.turn(ctx)
	if err != nil {
		return parts{}, err
	}
	defer end()
	e.mu.Lock()
	known = host.parts
	e.mu.Unlock()
	if known != nil { // by whose turn it was
		return *known, nil
	}
	if known, err = e.podmanParts(ctx); err != nil {
		return parts{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	host.parts = known
	return *known, nil
}

// podmanParts asks Podman for its parts. It says less in its version, and takes longer.
func (e *Engine) podmanParts(ctx context.Context) (*parts, error) {
	type program struct{ Name, Version string }
	var info struct {
		Version struct{ Version string }
		Host    struct {
			Conmon, OCIRuntime program
			Security           struct{ AppArmorEnabled, SELinuxEnabled bool }
		}
	}
	if err := e.libpod(ctx, http.MethodGet, "info", nil, &info); err != nil {
		return nil, wrapHost(ctx, "podman info", err)
	}
	oci := info.Host.OCIRuntime
	has := info.Host.Security
	return &parts{oci: oci.Name, apparmor: has.AppArmorEnabled, selinux: has.SELinuxEnabled, all: strings.Join([]string{
		"podman " + info.Version.Version, named("conmon", info.Host.Conmon.Version), named(oci.Name, oci.Version),
	}, ", ")}, nil
}

// named is a part and its version. Podman's say their names again, and more: "conmon version 2.1.6, commit: unknown".
func named(name, said string) string {
	version := firstLine(said)
	if n, rest, ok := strings.Cut(version, " version "); ok {
		name = n
		version, _, _ = strings.Cut(rest, ",")
	}
	return name + " " + version
}

// components names a Docker daemon and what it is made of.
func components(v client.ServerVersionResult) string {
	all := []string{"docker " + v.Version}
	for _, c := range v.Components {
		if c.Name != "Engine" {
			all = append(all, named(c.Name, c.Version))
		}
	}
	return strings.Join(all, ", ")
}
