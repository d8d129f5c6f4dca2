package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
)

// A task's directory DATA/tasks/ID holds:
//
//	lock         flock-ed by the one process that drives the task
//	bell         a FIFO; a byte tells the driver to look at the task's events
//	work/        staged inputs and what was read out of containers; gone when the task has ended
//	temporary    the names of temporary files beside outputs, one JSON string a line
//	steps/N/     the logs of step N, from 0; kept until the task is removed
type taskDir string

func (r *Runner) dir(id string) taskDir {
	return taskDir(filepath.Join(r.cfg.DataDir, "tasks", id))
}

func (d taskDir) id() string        { return filepath.Base(string(d)) }
func (d taskDir) lockFile() string  { return filepath.Join(string(d), "lock") }
func (d taskDir) bell() string      { return filepath.Join(string(d), "bell") }
func (d taskDir) work() string      { return filepath.Join(string(d), "work") }
func (d taskDir) logs(i int) string { return filepath.Join(string(d), "steps", strconv.Itoa(i)) }
func (d taskDir) removeLogs() error { return os.RemoveAll(filepath.Join(string(d), "steps")) }
func (d taskDir) removeWork() error { return removeAll(d.work()) }
func (d taskDir) inputs() string    { return filepath.Join(d.work(), "inputs") }
func (d taskDir) temporary() string { return filepath.Join(string(d), "temporary") }
func (d taskDir) mirror() string    { return filepath.Join(d.work(), "volumes") }
func (d taskDir) rooted() string    { return filepath.Join(d.work(), "root") }

// unread says why an output was not read out of the root of a step's container.
func (d taskDir) unread(output, step int) string {
	return filepath.Join(d.work(), fmt.Sprintf("unread-%d-%d", output, step))
}

// make makes the directory, unless it is there.
func (d taskDir) make() error {
	all := filepath.Dir(string(d))
	if err := os.MkdirAll(all, 0o700); err != nil {
		return err
	}
	scratch.Spread(all)
	if err := os.Mkdir(string(d), 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// remove removes all of it. Whoever tries to hold the task makes its lock file anew meanwhile, so that the directory is not
// empty when it is to go.
func (d taskDir) remove() error {
	err := os.RemoveAll(string(d))
	for tries := 0; errors.Is(err, unix.ENOTEMPTY) && tries < 100; tries++ {
		err = os.RemoveAll(string(d))
	}
	return err
}

// removeAll is os.RemoveAll, also of directories that their owner may not write.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(p, 0o700) //nolint:gosec // a directory of our own that is about to go
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// errBusy: another process drives the task.
var errBusy = errors.New("another process drives it")

// hold makes this process the driver of the task, or answers errBusy. The lock ends with the process, so
// that whoever gets it knows that no driver is alive.
func (d taskDir) hold() (*os.File, error) {
	for {
		if err := d.make(); err != nil {
			return nil, fmt.Errorf("directory of task: %w", kind(err))
		}
		f, err := os.OpenFile(d.lockFile(), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("directory of task: %w", kind(err))
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			_ = f.Close()
			return nil, errBusy
		} else if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", d.lockFile(), err)
		}
		if same(f, d.lockFile()) {
			return f, nil
		}
		_ = f.Close() // removed and made anew between open and lock
	}
}

func same(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(name)
	return err == nil && os.SameFile(a, b)
}

// holdWait is hold, waiting for a driver that is about to end.
func (d taskDir) holdWait(ctx context.Context, clock Clock) (*os.File, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		f, err := d.hold()
		if !errors.Is(err, errBusy) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-clock.After(pause):
		}
	}
}

// listen opens the bell. Closing it ends a Read.
func (d taskDir) listen() (*os.File, error) {
	if err := unix.Mkfifo(d.bell(), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make %s: %w", d.bell(), err)
	}
	// Open for writing too, or each ringer's close would be an end of file.
	return os.OpenFile(d.bell(), os.O_RDWR|syscall.O_NONBLOCK, 0)
}

// ring tells the driver to look. It reports whether one listens.
func (d taskDir) ring() bool {
	f, err := os.OpenFile(d.bell(), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false // ENXIO: nobody listens
	}
	defer func() { _ = f.Close() }()
	_, err = f.Write([]byte{1})
	return err == nil
}

// kind wraps an error of the file system in the kind of berth's errors that it is.
func kind(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", berth.ErrExhausted, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", berth.ErrDenied, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", berth.ErrNotFound, err)
	}
	return err
}
