package docker

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// unreachable is what the client says where no daemon takes connections.
var unreachable = regexp.MustCompile(`(?i)cannot connect to the docker daemon|failed to connect to the docker API|ssh to \S+: `)

// What daemons say that can run nothing, whatever it is.
var (
	ociFails    = regexp.MustCompile(`(?i)oci runtime (?:create failed|error)`)
	unmountable = quoted(`"`, `\"`, `\\\"`)
	noRuntime   = regexp.MustCompile(`(?i)grpc: the connection is unavailable|connection error: .*containerd\.sock`)
	noSpace     = regexp.MustCompile(`(?i)no space left on device`)
	ofRuntime   = regexp.MustCompile(`(?i)oci runtime`)
)

// quoted are the forms of a mount that fails of those that the runtime makes for all containers: others fail by a link in an
// image, or by what a task asks for. The quotes are the runtime's own, for it escapes those in names: once in words of today's, and
// once more for each time that older ones quote their words again.
func quoted(quotes ...string) (forms []*regexp.Regexp) {
	for _, q := range quotes {
		form := `(?is)^mounting Q[^"\\]*Q to rootfs (?:Q[^"\\]*Q )?at Q/(?:proc|sys|sys/fs/cgroup(?:/[\w,]+)?|dev|dev/pts|dev/mqueue)Q.*no such file or directory`
		forms = append(forms, regexp.MustCompile(strings.ReplaceAll(form, "Q", regexp.QuoteMeta(q))))
	}
	return forms
}

// isUnmountable reports whether a runtime says so. Its first words tell how it quotes: a name may hold the same, quoted otherwise.
func isUnmountable(text string) bool {
	at := ociFails.FindStringIndex(text)
	if at == nil {
		return false
	}
	_, words, _ := strings.Cut(text[at[1]:], "mounting ")
	return slices.ContainsFunc(unmountable, func(form *regexp.Regexp) bool { return form.MatchString("mounting " + words) })
}

// hostError is an error of a call in which the daemon speaks of itself, or makes or starts a container. In others it
// repeats what a registry says, or an archive.
type hostError struct{ error }

func (e hostError) Unwrap() error { return e.error }

// wrapHost is wrap for such a call.
func wrapHost(ctx context.Context, what string, err error) error {
	return hostError{wrap(ctx, what, err)}
}

// Broken tells the errors of a broken host from those of a task. answered: the daemon has said so itself, so that nothing
// has begun.
func (e *Engine) Broken(err error) (broken, answered bool) {
	if client.IsErrConnectionFailed(err) {
		return unreachable.MatchString(err.Error()), false
	}
	said, ok := errors.AsType[hostError](err)
	if !ok {
		return false, false
	}
	text := said.Error()
	broken = isUnmountable(text)
	// A name may be in what the runtime says, and in what the daemon refuses.
	named := ofRuntime.MatchString(text) || is(said.error, berth.ErrInvalid, berth.ErrNotFound, berth.ErrConflict)
	if noRuntime.MatchString(text) {
		broken = broken || !named
	}
	if noSpace.MatchString(text) {
		full, seen := e.daemonRoom()
		broken = broken || full != "" || !seen && !named
	}
	return broken, broken
}
