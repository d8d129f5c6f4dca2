package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// execution is one Exec.
type execution struct {
	c     *Container
	stdio berth.Stdio
	tty   bool
	ours  []*os.File
	wg    sync.WaitGroup // the copies out
}

// run starts the process and waits for its end and that of its output.
func (x *execution) run(ctx context.Context, process json.RawMessage) (berth.Exit, error) {
	theirs, err := x.open()
	if err != nil {
		return berth.Exit{}, err
	}
	defer func() {
		for _, f := range x.ours {
			_ = f.Close()
		}
	}()
	conn, err := x.c.sb.e.client.dial(ctx)
	if err != nil {
		return berth.Exit{}, err
	}
	defer func() { _ = conn.Close() }() // which ends the process, if ctx was ended first
	req := x.c.request(wire.OpExec)
	req.Exec = &wire.Exec{Process: process, TTY: x.tty}
	var a wire.Answer
	files, err := ask(ctx, conn, req, &a, theirs...)
	for _, f := range theirs {
		_ = f.Close()
	}
	switch {
	case ctx.Err() != nil:
		return berth.Exit{}, context.Cause(ctx)
	case err != nil:
		return berth.Exit{}, fmt.Errorf("exec: %w: %w", berth.ErrUnavailable, err)
	case a.Err != nil:
		return berth.Exit{}, a.Err.Err()
	case a.Exit != nil:
		return *a.Exit, nil
	}
	if x.tty {
		if len(files) != 1 {
			return berth.Exit{}, fmt.Errorf("exec: %w: the monitor sent no terminal", berth.ErrUnavailable)
		}
		con, err := pollable(files[0])
		if err != nil {
			return berth.Exit{}, fmt.Errorf("exec: terminal: %w", err)
		}
		x.ours = []*os.File{con}
	}
	x.copyAll()
	return x.await(ctx, conn)
}

// pollable takes a file over as one whose reads wait without a thread. It is duplicated, since Go does not wait
// for one descriptor in two files: the second then reads EAGAIN.
func pollable(f *os.File) (*os.File, error) {
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (x *execution) await(ctx context.Context, conn *wire.Conn) (berth.Exit, error) {
	stop := context.AfterFunc(ctx, func() {
		// A monitor that is told answers at once, with or without the exit.
		if !errors.Is(context.Cause(ctx), berth.ErrDetached) || conn.Send(&wire.Request{Op: wire.OpLeave}) != nil {
			_ = conn.Close()
		}
	})
	defer stop()
	var a wire.Answer
	if _, err := conn.Receive(&a); err != nil {
		if ctx.Err() != nil {
			return berth.Exit{}, context.Cause(ctx)
		}
		return berth.Exit{Reason: berth.Lost, Code: -1, Detail: "the monitor was killed"}, nil
	}
	if a.Exit == nil {
		return berth.Exit{}, context.Cause(ctx)
	}
	x.wg.Wait()
	return *a.Exit, nil
}

// open makes the pipes; a terminal's master comes with the answer.
func (x *execution) open() (theirs []*os.File, err error) {
	if x.tty {
		return nil, nil
	}
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if i == 0 {
			theirs, x.ours = append(theirs, r), append(x.ours, w)
		} else {
			theirs, x.ours = append(theirs, w), append(x.ours, r)
		}
	}
	return theirs, nil
}

func (x *execution) copyAll() {
	if x.tty {
		con := x.ours[0]
		if x.stdio.In != nil {
			go func() { _, _ = io.Copy(con, x.stdio.In) }() // ends with its reader, which is the caller's
		}
		x.out(x.stdio.Out, terminal{con})
		if x.stdio.Resize != nil {
			go func() {
				for s := range x.stdio.Resize {
					_ = resize(con, s)
				}
			}()
		}
		return
	}
	in := x.ours[0]
	if x.stdio.In == nil {
		_ = in.Close()
	} else {
		go func() { _, _ = io.Copy(in, x.stdio.In); _ = in.Close() }() // ends with its reader, which is the caller's
	}
	x.out(x.stdio.Out, x.ours[1])
	x.out(x.stdio.Err, x.ours[2])
}

// terminal reads the master of a terminal. Where its last holder writes and closes at the moment of a read, Linux says EIO,
// which is the end, before it hands out what was written: n_tty_read looks for input first, and for the holder then. So
// what is the end is asked for twice.
type terminal struct{ master io.Reader }

func (t terminal) Read(p []byte) (int, error) {
	n, err := t.master.Read(p)
	if n == 0 && errors.Is(err, unix.EIO) {
		n, err = t.master.Read(p)
	}
	return n, err
}

func (x *execution) out(w io.Writer, r io.Reader) {
	if w == nil {
		w = io.Discard
	}
	x.wg.Go(func() { _, _ = io.Copy(w, r) }) // a terminal ends with EIO, a pipe with EOF
}

// execProcess is the container's own process with another command.
func (s *Sandbox) execProcess(c *wire.Container, spec berth.ExecSpec) (*specs.Process, error) {
	switch {
	case spec.Privileged:
		return nil, fmt.Errorf("privileged: %w: a further command gets what the container has, and no more", berth.ErrUnsupported)
	case len(spec.Command) == 0:
		return nil, fmt.Errorf("%w: no command", berth.ErrInvalid)
	case spec.WorkingDir != "" && spec.WorkingDir != "." && !path.IsAbs(spec.WorkingDir):
		return nil, fmt.Errorf("workdir %q: %w: it is an absolute path in the container", spec.WorkingDir, berth.ErrInvalid)
	}
	p := new(specs.Process)
	if err := json.Unmarshal(c.Process, p); err != nil {
		return nil, errors.Join(berth.ErrUnavailable, err)
	}
	p.Args, p.Terminal = spec.Command, spec.TTY
	p.Env = mergeEnv(p.Env, spec.Env)
	if spec.TTY {
		p.Env = mergeEnv([]string{"TERM=xterm"}, p.Env)
	}
	if spec.WorkingDir != "" && spec.WorkingDir != "." {
		p.Cwd = path.Clean(spec.WorkingDir)
	}
	if spec.User != "" {
		id, err := s.e.user(c.Step.Image.ID, spec.User, nil)
		if err != nil {
			return nil, err
		}
		p.User = id.User
		for _, g := range s.desc.Spec.Grants {
			gids := g.GIDs
			if userns.RunningInUserNS() {
				if gids, err = groupsOf(g.Nodes); err != nil {
					return nil, err
				}
			}
			for _, gid := range gids {
				if gid != 0 && !slices.Contains(p.User.AdditionalGids, gid) {
					p.User.AdditionalGids = append(p.User.AdditionalGids, gid)
				}
			}
		}
		if caps := p.Capabilities; caps != nil {
			caps.Effective, caps.Permitted, caps.Ambient = nil, nil, nil
			if id.UID == 0 { // what root of this container would have had, as with Podman
				caps.Effective, caps.Permitted = slices.Clone(caps.Bounding), slices.Clone(caps.Bounding)
			}
		}
	}
	return p, nil
}
