package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/berth-project/berth"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// notAllowed is what the client says of a socket that this user may not connect to.
const notAllowed = "permission denied while trying to connect to the docker API"

// oldAPI is what the client says of a daemon that speaks none of the versions of the API that it does.
const oldAPI = "is not supported by this client: the minimum supported API version is"

// tooOld is what such a daemon says itself, and any that is asked for a version that it does not have yet.
const tooOld = "is too new. Maximum supported API version is"

// mostAPI finds the version that it has.
var mostAPI = regexp.MustCompile(regexp.QuoteMeta(tooOld) + ` (\d+\.\d+)`)

// oldestAPI is the minor version of the oldest API that berth speaks.
const oldestAPI = 40

// words are what daemons say in errors whose status says too little.
var words = []struct {
	text string
	kind error
}{
	{notAllowed, berth.ErrDenied},
	{"failed to verify certificate", berth.ErrDenied},
	{"client authentication (--tlsverify) enabled", berth.ErrDenied},
	{"tls: certificate required", berth.ErrDenied},
	{"Client sent an HTTP request to an HTTPS server", berth.ErrDenied},
	{oldAPI, berth.ErrUnsupported},
	{tooOld, berth.ErrUnsupported},
	{"no space left on device", berth.ErrExhausted},
	{"disk quota exceeded", berth.ErrExhausted},
	{"Range of CPUs is from", berth.ErrExhausted},
	{"unable to set memory limit", berth.ErrExhausted},                              // runc's, of one that the container's start is above
	{"the memory limit could be too low", berth.ErrExhausted},                       // crun's
	{"that name is already in use", berth.ErrConflict},                              // Podman's, of a container's
	{"volume has active mounts", berth.ErrConflict},                                 // of a container that has just gone
	{"container state improper", berth.ErrConflict},                                 // Podman's, of what needs a running container
	{"payload does not match any of the supported image formats", berth.ErrInvalid}, // Podman's, of an archive
	{"unresolvable CDI devices", berth.ErrNotFound},                                 // Podman's
	{"image not known", berth.ErrNotFound},                                          // Podman's
	{"nable to find user", berth.ErrInvalid},                                        // with a capital where it is said of a group or user beside the container's own
	{"nable to find group", berth.ErrInvalid},
	{"uids and gids must be in range", berth.ErrInvalid},
	{"unknown capability", berth.ErrInvalid},
	{"is not a separate kernel parameter", berth.ErrInvalid},
	{"sysctl", berth.ErrInvalid},
	{"decoding seccomp profile failed", berth.ErrInvalid},
	{"toomanyrequests", berth.ErrUnavailable},
	{"verification failed for digest", berth.ErrInvalid},
	{"layer verification failed", berth.ErrInvalid},
	{"unexpected commit digest", berth.ErrInvalid},      // with containerd's store of images
	{"error unmarshalling content: ", berth.ErrInvalid}, // of a registry that answers with something else, as a page for people
	{"invalid character '<' looking for beginning of value", berth.ErrInvalid},
	{"unauthorized", berth.ErrDenied},
	{": 401 Unauthorized", berth.ErrDenied}, // with containerd's store of images, of a registry that it asks by HEAD
	{": 403 Forbidden", berth.ErrDenied},
	{"401 (Unauthorized)", berth.ErrDenied}, // Podman's
	{"403 (Forbidden)", berth.ErrDenied},
	{"no basic auth credentials", berth.ErrDenied},
	{"manifest unknown", berth.ErrNotFound},
	{"no matching manifest", berth.ErrNotFound},
	{"container not known", berth.ErrNotFound}, // Podman's, of one that is removed meanwhile
	{"no such container", berth.ErrNotFound},   // which comes from Podman as an error of its own
	{"not found", berth.ErrNotFound},
}

var (
	// pageStatus finds with which status a registry answered a page for people, in which there may be any words.
	pageStatus = regexp.MustCompile(`(?:error parsing HTTP |: StatusCode: )(\d+)(?: response body|, )`) // Podman has the latter
	// registryDenied finds the code of a registry's refusal, which may have no message. "permission denied" is the host's.
	registryDenied = regexp.MustCompile(`(^|: )denied(: |$)`)
	// notDirectory finds what Docker and Podman say of a working directory that is a file.
	notDirectory = regexp.MustCompile(`Cannot mkdir: .* is not a directory|workdir "[^"]*" exists on container \S+, but is not a directory`)
)

// tlsWords are what is said of a TLS that fails, and what to do.
var tlsWords = []struct{ text, hint string }{
	{"failed to verify certificate", "is ca.pem in DOCKER_CERT_PATH, or in the Docker context, of the authority that made this daemon's certificate, and is the address in that?"},
	{"client authentication (--tlsverify) enabled", "are cert.pem and key.pem in DOCKER_CERT_PATH, or in the Docker context, what this daemon's authority has signed?"},
	{"tls: certificate required", "the daemon wants a certificate: cert.pem and key.pem in DOCKER_CERT_PATH, or in the Docker context"},
	{"Client sent an HTTP request to an HTTPS server", "the daemon speaks TLS: set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH"},
	{"server gave HTTP response to HTTPS client", "the daemon speaks no TLS, which DOCKER_TLS_VERIFY, DOCKER_CERT_PATH or the Docker context asks for"},
}

// kindOf is the kind of an error of the daemon, its client, or this host.
func kindOf(err error) error {
	for _, k := range []error{
		berth.ErrInvalid, berth.ErrNotFound, berth.ErrConflict, berth.ErrDenied, berth.ErrExhausted, berth.ErrUnavailable, berth.ErrUnsupported,
	} {
		if errors.Is(err, k) {
			return k
		}
	}
	switch {
	case strings.Contains(err.Error(), "pull access denied"): // which comes as "not found"
		return berth.ErrDenied
	case strings.Contains(err.Error(), "unexpected media type text/"): // which does, too, with containerd's store of images, of a page for people
		return berth.ErrInvalid
	case errdefs.IsNotFound(err):
		return berth.ErrNotFound
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err):
		return berth.ErrConflict
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), errors.Is(err, fs.ErrPermission):
		return berth.ErrDenied
	case errdefs.IsNotImplemented(err):
		return berth.ErrUnsupported
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return berth.ErrExhausted
	}
	if status := pageStatus.FindStringSubmatch(err.Error()); status != nil {
		return statusKind(status[1])
	}
	for _, w := range words {
		if strings.Contains(err.Error(), w.text) {
			return w.kind
		}
	}
	switch {
	case registryDenied.MatchString(err.Error()):
		return berth.ErrDenied
	case notDirectory.MatchString(err.Error()):
		return berth.ErrInvalid
	}
	if errdefs.IsInvalidArgument(err) {
		return berth.ErrInvalid
	}
	return berth.ErrUnavailable
}

// statusKind is the kind of a registry's status, as on the embedded engine.
func statusKind(status string) error {
	switch status {
	case "401", "403":
		return berth.ErrDenied
	case "404":
		return berth.ErrNotFound
	}
	return berth.ErrUnavailable
}

// is reports whether an error is of one of the kinds.
func is(err error, kinds ...error) bool {
	return err != nil && slices.Contains(kinds, kindOf(err))
}

// wrap gives an error of the API its kind. What ended ctx goes first.
func wrap(ctx context.Context, what string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w", what, cause)
	}
	k := kindOf(err)
	if said, ok := errors.AsType[*sshError](err); ok {
		err = connectionError{said, err}
	} else {
		err = daemonError{err}
	}
	if errors.Is(err, k) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, k, err)
}

// wrapAs is wrap for an error of a kind that is known.
func wrapAs(ctx context.Context, kind error, what string, err error) error {
	if k := kindOf(err); !errors.Is(k, berth.ErrUnavailable) {
		kind = k
	}
	return wrap(ctx, what, fmt.Errorf("%w: %w", kind, err))
}

// connectionError is what is wrong with a connection, without the words of those through whom it came.
type connectionError struct {
	*sshError
	whole error
}

func (e connectionError) Unwrap() error { return e.whole }

// daemonError is an error without the words by which the client says whose it is.
type daemonError struct{ error }

func (e daemonError) Error() string {
	s := strings.ReplaceAll(e.error.Error(), "Error response from daemon: ", "")
	for _, w := range tlsWords {
		if strings.Contains(s, w.text) {
			s += "; " + w.hint
			break
		}
	}
	switch most := mostAPI.FindStringSubmatch(s); {
	case most != nil && !apiBefore(most[1], oldestAPI): // berth asks for no more than a daemon has, unless it is told to
		s += "; unset " + client.EnvOverrideAPIVersion + ", or set it to " + most[1] + " at most"
	case most != nil, strings.Contains(s, oldAPI):
		s += fmt.Sprintf("; berth needs a daemon with API 1.%d or newer (Docker 19.03)", oldestAPI)
	}
	if strings.Contains(s, notAllowed) {
		s += "; become a member of the group that owns the socket, as with `usermod -aG docker USER` and a new login, or be root"
	}
	return s
}
func (e daemonError) Unwrap() error { return e.error }
