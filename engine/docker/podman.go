package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// Podman's service speaks Docker's API beside its own. Containers are made by its own, and the rest is asked for as of
// Docker: its create call of Docker's API leaves out without a word the cgroup namespace, masked paths, device rules and
// device requests, the OCI runtime and the copying of a tmpfs, takes a seccomp profile for the path of a file, a mount
// for a list with commas, and a source that is not there for a directory to be made.

// libpod calls Podman's own API. in and out are JSON; nil is none.
func (e *Engine) libpod(ctx context.Context, method, call string, in, out any) error {
	raw, err := json.Marshal(in)
	if err != nil {
		return err
	}
	// The oldest version that Podman 4 and 5 serve.
	body, err := e.podman(ctx, method, "/v4.0.0/libpod/"+call, raw)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if raw, err = io.ReadAll(io.LimitReader(body, answerMax)); err != nil || out == nil {
		return err
	}
	return json.Unmarshal(raw, out)
}

// answerMax bounds an answer of Podman's that is read whole, in bytes.
const answerMax = 1 << 20

// podman calls Podman's service by a path and returns its answer.
func (e *Engine) podman(ctx context.Context, method, path string, raw []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://podman"+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json") // else its body is taken for a form
	dial := e.api().Dialer()
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	res, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode < http.StatusBadRequest {
		return res.Body, nil
	}
	defer func() { _ = res.Body.Close() }()
	if raw, err = io.ReadAll(io.LimitReader(res.Body, answerMax)); err != nil {
		return nil, err
	}
	return nil, podmanError(res.StatusCode, raw)
}

// listTries is how often Podman is asked for its containers that fails because one is removed meanwhile.
const listTries = 20

// listPause is how long it is given to have removed it.
const listPause = 100 * time.Millisecond

// halfGone is what Podman 4 answers to a list while it removes a container, and for ever where it has removed one while
// that was made: it has a record of it then, and no files.
var halfGone = regexp.MustCompile(`getting container from store "([0-9a-f]{64})"`)

// listContainers lists containers, also while others remove some.
func (e *Engine) listContainers(ctx context.Context, opts client.ContainerListOptions) (res client.ContainerListResult, err error) {
	err = e.list(ctx, func() error {
		res, err = e.api().ContainerList(ctx, opts)
		return err
	})
	return res, err
}

// listNetworks lists networks likewise: Podman looks at all containers for each of them.
func (e *Engine) listNetworks(ctx context.Context, opts client.NetworkListOptions) (res client.NetworkListResult, err error) {
	err = e.list(ctx, func() error {
		res, err = e.api().NetworkList(ctx, opts)
		return err
	})
	return res, err
}

// list makes a call that fails where somebody removes a container meanwhile. One that this process has made and that stays half gone
// is removed.
func (e *Engine) list(ctx context.Context, call func() error) error {
	for try := 1; ; try++ {
		err := call()
		if err == nil || try == listTries || ctx.Err() != nil {
			return err
		}
		id := halfGone.FindStringSubmatch(err.Error())
		if id == nil && !is(err, berth.ErrNotFound) {
			return err
		}
		if id != nil && try > listTries/2 {
			if e.made.has(id[1]) {
				_, _ = e.api().ContainerRemove(ctx, id[1], client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}) // the next list says whether it went
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(listPause):
		}
	}
}

// podmanEvents tells of what Podman remembers. Asked as Docker is, for what was until now, it answers nothing: it ends
// at that time, which has come before it begins to read.
func (e *Engine) podmanEvents(ctx context.Context, since time.Time, f client.Filters, each func(events.Message)) error {
	filters := map[string][]string{}
	for k, v := range f {
		filters[k] = slices.Sorted(maps.Keys(v))
	}
	raw, err := json.Marshal(filters)
	if err != nil {
		return err
	}
	q := url.Values{"stream": {"false"}, "since": {strconv.FormatInt(since.Unix(), 10)}, "filters": {string(raw)}}
	body, err := e.podman(ctx, http.MethodGet, "/v1.41/events?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	for d := json.NewDecoder(body); ; {
		var m events.Message
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		each(m)
	}
}

// podmanError is an error of Podman's service. Most come with the status 500, and say what they are in words.
func podmanError(status int, body []byte) error {
	var said struct {
		Message string `json:"message"`
	}
	if err := json.Unmarshal(body, &said); err != nil || said.Message == "" {
		said.Message = strings.TrimSpace(string(body))
	}
	switch status {
	case http.StatusBadRequest:
		return fmt.Errorf("%s: %w", said.Message, errdefs.ErrInvalidArgument)
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", said.Message, errdefs.ErrNotFound)
	case http.StatusConflict:
		return fmt.Errorf("%s: %w", said.Message, errdefs.ErrConflict)
	}
	return errors.New(said.Message)
}

// createContainer makes a container. dir is the step's directory.
func (e *Engine) createContainer(ctx context.Context, host *hostInfo, dir string, opts client.ContainerCreateOptions) (client.ContainerCreateResult, error) {
	if !host.podman {
		return e.api().ContainerCreate(ctx, opts)
	}
	spec, err := podmanSpecOf(opts, dir)
	if err != nil {
		return client.ContainerCreateResult{}, err
	}
	var res client.ContainerCreateResult
	err = e.libpod(ctx, http.MethodPost, "containers/create", spec, &res)
	if err == nil {
		e.made.add(res.ID)
	}
	return res, err
}

// prepare has Podman make the container's processes ready to be started: what cannot be started is told here. To attach
// would make them ready too, but the answer does not come through. An error of which startCode knows the code is the
// command's.
func (la *launch) prepare(ctx context.Context, host *hostInfo) error {
	if !host.podman {
		return nil
	}
	cctx, cancel := la.s.e.call(ctx)
	defer cancel()
	if err := la.s.e.libpod(cctx, http.MethodPost, "containers/"+la.l.docker()+"/init", nil, nil); err != nil {
		return wrapHost(cctx, "daemon", err)
	}
	la.l.watchOOM(la.l.rec)
	return nil
}

// killWait reports whether an error of a kill is that the container did not end at once: Podman waits for that after it
// has sent the signal, and conmon for whom it writes to.
func killWait(err error) bool {
	return strings.Contains(err.Error(), "timed out waiting for file")
}

// profileFile is the seccomp profile of a step, which Podman reads when the container is made.
const profileFile = "seccomp.json"

// writeProfile writes a profile to a file for Podman.
func writeProfile(dir, profile string) (string, error) {
	file := filepath.Join(dir, profileFile)
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		return "", fmt.Errorf("seccomp profile: %w: %w", kindOf(err), err)
	}
	return file, nil
}

// removeConmon removes the cgroup that Podman makes in a step's, beside the container's, for the process that watches it,
// and leaves.
func removeConmon(cgroup string) {
	_ = unix.Rmdir(filepath.Join(cgroup, "conmon")) // where it is there and empty
}

// podmanExecWord is how the words begin that Podman puts on standard error in the place of an exec's command that it
// could not start.
func (e *Engine) podmanExecWord(ctx context.Context) (string, error) {
	p, err := e.parts(ctx)
	if err != nil || p.oci == "" {
		return "", err
	}
	return "Error: " + p.oci + ": ", nil
}

// linkArchive is the archive of a symbolic link. Podman follows one that it is asked for; it says where it leads, which
// goes in place of what the link says.
func linkArchive(p string, s container.PathStat) (io.ReadCloser, error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	h := &tar.Header{Typeflag: tar.TypeSymlink, Name: path.Base(path.Clean(p)), Linkname: s.LinkTarget, Mode: 0o777, ModTime: s.Mtime}
	if err := errors.Join(t.WriteHeader(h), t.Close()); err != nil {
		return nil, fmt.Errorf("%s in the container: %w", p, err)
	}
	return io.NopCloser(&b), nil
}
