package monitor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/logfile"
	"golang.org/x/sys/unix"
)

// pipeSize is asked for the output pipes, in bytes: fewer wake-ups at full speed. The kernel gives memory
// only to what lies in them.
const pipeSize = 256 << 10

// openStreams makes the container's streams: pipes, so that they can be reopened by their names in /dev,
// owned by the container's user for the same reason.
func (l *launch) openStreams() error {
	c := l.c
	for _, stream := range []string{"stdout", "stderr"} {
		if stream == "stderr" && c.step.TTY {
			break
		}
		if err := l.openLog(stream); err != nil {
			return err
		}
	}
	if c.step.TTY {
		return nil
	}
	stdin, err := l.openStdin()
	if err != nil {
		return err
	}
	l.bundle.Stdin = stdin
	return nil
}

func (l *launch) openLog(stream string) error {
	c := l.c
	limit := c.step.LogLimit
	switch {
	case limit == 0:
		limit = defaultLogLimit
	case limit < 0:
		limit = 0
	}
	opts := logfile.Options{Limit: limit, Held: c.step.Hold && c.sb.isBound(), Reserve: filepath.Join(c.sb.m.cfg.Dir, runDir, "log-reserve")}
	var err error
	if opts.Copy, err = l.openCopy(stream); err != nil {
		return err
	}
	w, err := logfile.Create(c.logDir(), c.logName(stream), opts)
	if err != nil {
		return err
	}
	c.logs[stream] = w
	if c.step.TTY {
		return nil
	}
	r, pw, err := outputPipe(l.spec.Process.User.UID, l.spec.Process.User.GID)
	if err != nil {
		return err
	}
	l.files = append(l.files, pw)
	if stream == "stdout" {
		l.bundle.Stdout = pw
	} else {
		l.bundle.Stderr = pw
	}
	c.pump(stream, r)
	return nil
}

// openCopy opens the container file that the step wants its stream in.
func (l *launch) openCopy(stream string) (*os.File, error) {
	p := l.c.step.Stdout
	if stream == "stderr" {
		p = l.c.step.Stderr
	}
	if p == "" {
		return nil, nil
	}
	return l.c.sb.createInVolume(p, l.spec.Process.User)
}

func outputPipe(uid, gid uint32) (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	if err := errors.Join(unix.SetNonblock(p[0], true), unix.Fchown(p[1], int(uid), int(gid))); err != nil {
		_, _ = unix.Close(p[0]), unix.Close(p[1])
		return nil, nil, fmt.Errorf("output pipe of user %d: %w", uid, err)
	}
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, pipeSize) // as much as this user may have
	return os.NewFile(uintptr(p[0]), "output"), os.NewFile(uintptr(p[1]), "output"), nil
}

// openStdin opens what the step reads: a pipe that a client fills, or a file of the container; nil is nothing.
func (l *launch) openStdin() (*os.File, error) {
	c := l.c
	switch {
	case c.step.Stdin != "":
		f, err := l.openForStdin(c.step.Stdin)
		if err == nil {
			l.files = append(l.files, f)
		}
		return f, err
	case c.step.OpenStdin:
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("pipe: %w", err)
		}
		r, w := os.NewFile(uintptr(p[0]), "stdin"), os.NewFile(uintptr(p[1]), "stdin")
		_ = unix.Fchown(p[0], int(l.spec.Process.User.UID), int(l.spec.Process.User.GID))
		c.stdin = w
		l.files = append(l.files, r)
		return r, nil
	default:
		return nil, nil // the container's own null device, which the starter sees to: the host's could be changed through it
	}
}
