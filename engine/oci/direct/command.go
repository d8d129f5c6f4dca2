package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/initbin"
)

// The descriptors of the program that executes the command, berth's init or the trampoline: the pipe to which
// it reports, and its own image. The command gets neither.
const (
	reportFD = initbin.ReportFD
	imageFD  = 4
)

// defaultPath is searched for a command where the environment has no PATH, as in berth's init.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// candidates are the paths at which a command may be, as execvp(3) looks for it.
func candidates(command string, env []string) []string {
	if command == "" {
		return nil
	}
	if strings.Contains(command, "/") {
		return []string{command}
	}
	search := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
			break
		}
	}
	if search == "" {
		search = defaultPath
	}
	var paths []string
	for dir := range strings.SplitSeq(search, ":") {
		if dir == "" {
			dir = "."
		}
		paths = append(paths, path.Join(dir, command))
	}
	return paths
}

// command adds the step that executes the command: through berth's init, or through the trampoline. What the
// container names as its command is never executed by berth itself, which has more in /proc/self/exe than an
// image may see.
func (p *plan) command(proc *specs.Process, init bool) {
	b := p.b
	args := append([]string{initbin.Arg0}, proc.Args...)
	what := "berth's init"
	if !init {
		args = append(append(candidates(proc.Args[0], proc.Env), ""), proc.Args...)
		what = "the trampoline"
	}
	b.doing("execute", what)
	b.call(unix.SYS_EXECVEAT, imageFD, b.str(""), b.strv(args), b.strv(proc.Env), unix.AT_EMPTY_PATH)
}

// placeImage adds the steps that put the report pipe and the image to their numbers. Nothing that a later step
// needs may have one of these.
func (p *plan) placeImage(report, image arg) {
	b := p.b
	b.doing("place report pipe", "")
	b.call(unix.SYS_DUP3, report, reportFD, 0)
	b.doing("place image", "")
	b.call(unix.SYS_DUP3, image, imageFD, unix.O_CLOEXEC)
}

// highFd is above every descriptor that a command begins with.
const highFd = 16

// high adds the step that duplicates a descriptor out of the way.
func (p *plan) high(fd arg) arg {
	return p.b.open(unix.SYS_FCNTL, fd, unix.F_DUPFD_CLOEXEC, highFd)
}

// awaitInit waits until berth's init has executed the command. A StartError says that it could not.
func awaitInit(r io.Reader, command string) error {
	rec, err := initbin.ReadRecord(r)
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("start container: berth's init ended before it executed %s", command)
	case err != nil:
		return fmt.Errorf("start container: %w", err)
	case rec.Kind == initbin.ExecFailed:
		return &bundle.StartError{Command: command, Errno: syscall.Errno(rec.Value)}
	case rec.Kind != initbin.Executed:
		return fmt.Errorf("start container: berth's init reports %d", rec.Kind)
	}
	return nil
}

// awaitTrampoline waits until the trampoline has executed the command. A StartError says that it could not.
func awaitTrampoline(r io.Reader, command string) error {
	var buf [4]byte
	switch _, err := io.ReadFull(r, buf[:]); {
	case errors.Is(err, io.EOF):
		return nil // the pipe was closed by the command's execve, or by an end before it
	case err != nil:
		return fmt.Errorf("start container: %w", err)
	}
	return startError(command, syscall.Errno(binary.NativeEndian.Uint32(buf[:])))
}

func startError(command string, errno syscall.Errno) error {
	if errno == 0 {
		errno = unix.ENOENT // there was no candidate
	}
	return &bundle.StartError{Command: command, Errno: errno}
}

// pipe is os.Pipe for one report: the reader goes through the poller, the writer is blocking.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make report pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "report"), os.NewFile(uintptr(fds[1]), "report"), nil
}
