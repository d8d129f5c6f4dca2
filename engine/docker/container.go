package docker

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/logfile"
	"github.com/moby/moby/client"
)

// Container is a started step of this engine.
type Container struct {
	life *life
	sb   *Sandbox
}

var (
	_ berth.Container   = (*Container)(nil)
	_ berth.LogReader   = (*Container)(nil)
	_ berth.Signaler    = (*Container)(nil)
	_ berth.Execer      = (*Container)(nil)
	_ berth.Statser     = (*Container)(nil)
	_ berth.Addresser   = (*Container)(nil)
	_ berth.Publisher   = (*Container)(nil)
	_ berth.StdinWriter = (*Container)(nil)
	_ berth.Terminal    = (*Container)(nil)
	_ berth.Archiver    = (*Container)(nil)
)

// ID is the container's id.
func (c *Container) ID() string { return c.life.step }

// Runtime is the runtime that the daemon has for the container; "" where its record cannot be read.
func (c *Container) Runtime() string {
	r, err := c.life.readRecord()
	if err != nil {
		return ""
	}
	return r.Runtime
}

// Wait waits for the container's end.
func (c *Container) Wait(ctx context.Context) (berth.Exit, error) { return c.life.wait(ctx) }

// Stop ends the container.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	return c.life.end(ctx, intent{Reason: berth.Stopped}, grace)
}

// Remove removes the container.
func (c *Container) Remove(ctx context.Context) error {
	return c.life.remove(ctx, c.sb, c.life.docker())
}

// Signal sends a signal to the container's command.
func (c *Container) Signal(ctx context.Context, sig syscall.Signal) error {
	if err := c.life.noteSignal(sig); err != nil {
		return fmt.Errorf("signal %s: %w: %w", c.life, kindOf(err), err)
	}
	sent, err := c.life.kill(ctx, strconv.Itoa(int(sig)))
	if err == nil && !sent {
		err = c.hasEnded("signal")
	}
	return err
}

func (c *Container) hasEnded(what string) error {
	return fmt.Errorf("%s %s: %w: the container has ended", what, c.life, berth.ErrConflict)
}

// Address is the IP address of the container. It is asked for once: a container keeps it as long as it runs.
func (c *Container) Address(ctx context.Context) (string, error) {
	c.life.mu.Lock()
	known := c.life.address
	c.life.mu.Unlock()
	if known != "" {
		return known, nil
	}
	i, err := c.life.inspect(ctx, c.life.docker())
	if err != nil {
		return "", err
	}
	if i.NetworkSettings != nil {
		for _, n := range i.NetworkSettings.Networks {
			if n.IPAddress.IsValid() {
				c.life.mu.Lock()
				defer c.life.mu.Unlock()
				c.life.address = n.IPAddress.String()
				return c.life.address, nil
			}
		}
	}
	return "", fmt.Errorf("container %s has no IP address: %w: its network is %s", c.life, berth.ErrNotFound, c.sb.spec.Network.Mode)
}

// Published are the ports of the daemon's machine that lead to the container's, in order of the container's.
func (c *Container) Published(ctx context.Context) ([]berth.Port, error) {
	i, err := c.life.inspect(ctx, c.life.docker())
	if err != nil || i.NetworkSettings == nil {
		return nil, err
	}
	var all []berth.Port
	for inside, bindings := range i.NetworkSettings.Ports {
		for _, b := range bindings {
			host, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("container %s: port %s: %w: the daemon says that it is at %q", c.life, inside, berth.ErrUnavailable, b.HostPort)
			}
			p := berth.Port{Host: uint16(host), Container: inside.Num(), Protocol: string(inside.Proto())}
			if b.HostIP.IsValid() {
				p.HostIP = b.HostIP.String()
			}
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b berth.Port) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Host, b.Host))
	})
	return all, nil
}

// Stdin is the container's standard input. It has one holder, in the process that started the container: a
// second call is ErrConflict.
func (c *Container) Stdin(context.Context) (io.WriteCloser, error) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	in := c.life.stdin
	if in == nil || in.taken {
		return nil, fmt.Errorf("standard input of %s: %w: it is not open, or taken", c.life, berth.ErrConflict)
	}
	in.taken = true
	return in, nil
}

// Fed is closed when this process has no file to hand over any more that is the container's standard input: if it ended
// before, the command would have less of it.
func (c *Container) Fed() <-chan struct{} {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	if c.life.feeding != nil {
		return c.life.feeding
	}
	over := make(chan struct{})
	close(over)
	return over
}

// Resize sets the size of the container's terminal.
func (c *Container) Resize(ctx context.Context, rows, cols uint16) error {
	ctx, cancel := c.life.e.call(ctx)
	defer cancel()
	if _, err := c.life.e.api().ContainerResize(ctx, c.life.docker(), client.ContainerResizeOptions{Height: uint(rows), Width: uint(cols)}); err != nil {
		return wrap(ctx, "resize "+c.life.String(), err)
	}
	return nil
}

// Archive reads a file or directory out of the container's root.
func (c *Container) Archive(ctx context.Context, p string) (io.ReadCloser, error) {
	return c.life.copyOut(ctx, p)
}

func (l *life) copyOut(ctx context.Context, p string) (io.ReadCloser, error) {
	return l.e.stream(ctx, p+" in the container", l.e.cfg.Stall, func(ctx context.Context) (io.ReadCloser, error) {
		res, err := l.e.api().CopyFromContainer(ctx, l.docker(), client.CopyFromContainerOptions{SourcePath: p})
		if host, herr := l.e.daemon(ctx); err == nil && herr == nil && host.podman && res.Stat.Mode&os.ModeSymlink != 0 {
			_ = res.Content.Close()
			return linkArchive(p, res.Stat)
		}
		return res.Content, belowFile(err)
	})
}

// belowFile has what is asked for below a file not be there, which daemons do not say: they look for it on the machine.
func belowFile(err error) error {
	if err != nil && strings.HasSuffix(strings.TrimSpace(err.Error()), ": not a directory") {
		return fmt.Errorf("%w: it lies below what is no directory", berth.ErrNotFound)
	}
	return err
}

// linksMax bounds how many symbolic links lead to a file.
const linksMax = 40

// openFile reads a file of the container, which need not run.
func (l *life) openFile(ctx context.Context, p string) (io.ReadCloser, error) {
	for range linksMax {
		content, err := l.copyOut(ctx, p)
		if err != nil {
			return nil, err
		}
		t := tar.NewReader(content)
		h, err := t.Next()
		switch {
		case err != nil:
			_ = content.Close()
			return nil, wrap(ctx, p+" in the container", err)
		case h.Typeflag == tar.TypeReg:
			return readCloser{t, content}, nil
		}
		_ = content.Close()
		if h.Typeflag != tar.TypeSymlink {
			return nil, fmt.Errorf("%s in the container: %w: it is no file", p, berth.ErrInvalid)
		}
		if path.IsAbs(h.Linkname) {
			p = path.Clean(h.Linkname)
		} else {
			p = path.Join(path.Dir(p), h.Linkname) //nolint:gosec // a path in the container
		}
	}
	return nil, fmt.Errorf("%s in the container: %w: too many symbolic links", p, berth.ErrInvalid)
}

type readCloser struct {
	io.Reader
	io.Closer
}

// Logs reads what the container wrote.
func (c *Container) Logs(ctx context.Context, opts berth.LogOptions) (io.ReadCloser, error) {
	stream := "stdout"
	if opts.Stderr {
		stream = "stderr"
	}
	r, err := c.logs(ctx, stream, opts)
	if err != nil && opts.Hold {
		c.life.mu.Lock()
		defer c.life.mu.Unlock()
		if w := c.life.writers[stream]; w != nil {
			w.Unhold() // its reader has come, and reads nothing
		}
	}
	return r, err
}

func (c *Container) logs(ctx context.Context, stream string, opts berth.LogOptions) (io.ReadCloser, error) {
	rec, err := c.life.readRecord()
	if err != nil {
		return nil, err
	}
	if opts.Stderr && rec.Spec.TTY {
		return io.NopCloser(eof{}), nil
	}
	r, err := logfile.Open(c.life.logDir(rec), stream, logfile.From{Offset: opts.Offset, Tail: opts.Tail, Since: opts.Since})
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("logs of %s: %w", c.life, berth.ErrNotFound)
	}
	if err != nil || !opts.Follow {
		return r, err
	}
	c.life.mu.Lock()
	w := c.life.writers[stream]
	c.life.mu.Unlock()
	if w == nil { // another process writes it
		return r.Follow(ctx, func(ctx context.Context, have int64) (bool, error) { return c.poll(ctx, r, have) }), nil
	}
	f := w.Follow(opts.Hold, r.Pos())
	return &followed{log: r, ReadCloser: r.Follow(ctx, func(ctx context.Context, have int64) (bool, error) {
		f.Ack(have)
		for {
			select {
			case <-f.C():
			case <-ctx.Done():
				return false, context.Cause(ctx)
			}
			if end, _, done := w.State(); done || end > have {
				return done, nil
			}
		}
	}), f: f}, nil
}

type followed struct {
	io.ReadCloser
	log *logfile.Reader
	f   *logfile.Follower
}

// Skipped is how much of the log was dropped before its reader came to it.
func (f *followed) Skipped() int64 { return f.log.Skipped() }

func (f *followed) Close() error {
	f.f.Close()
	return f.ReadCloser.Close()
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// poll waits until another process has written more.
func (c *Container) poll(ctx context.Context, r *logfile.Reader, have int64) (bool, error) {
	for {
		ended := c.life.known()
		if end, err := r.End(); err != nil || end > have || ended {
			return ended, err
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}
