// Package bundle is what the two ways of starting a container on this host share: what is started, and
// what a started container can do. Package direct starts it from Go; package runtime through an OCI
// runtime binary. It holds no behaviour.
package bundle

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Bundle is one container that is ready to be started. All paths are valid in the caller's mount namespace.
type Bundle struct {
	ID   string
	Dir  string      // directory of this container alone, 0700, for the runtime's own files
	Spec *specs.Spec // complete; Root.Readonly counts, Root.Path is filled by a starter that needs it
	Root Root
	// Cgroup is made and limited before the start. The started process is in it before its first own
	// instruction.
	Cgroup Cgroup
	// NetNS is joined; nil stays in the caller's network namespace.
	NetNS *os.File
	// The container's ends of its streams; the starter does not close them. One that is nil is the container's own null
	// device. With Spec.Process.Terminal they are nil, and Process.Console is the master of its terminal.
	Stdin, Stdout, Stderr *os.File
	// Init: pid 1 is berth's init, which runs Spec.Process.Args as its child.
	Init bool
	// ReplaceStdin, where not "", is the container path of the file that is standard input. It is opened
	// inside the container, after its mounts are in place.
	ReplaceStdin string
	// Like, where not "", names what is in the root before anything is written or mounted: that of another bundle
	// of the same name has the same libraries and the same files that say where they are.
	Like string
	// Plain, where not nil, says at which paths there are regular files of the root's own layers, with no link on the way to
	// them, as nobody has written to the root yet.
	Plain map[string]bool
	// Mount, where not nil, gives the mount of Root, which was begun before; once: the next one has to be made.
	Mount func() (*os.File, error)
	// Ready, where not nil, is called once all of the container is there, and nothing of its command has run: after
	// the hooks that run before the start. Its error ends the start, and is in Start's.
	Ready func(Created) error
}

// Created is a container whose command has not begun.
type Created struct {
	Pid  int      // of the process that will execute the command, as the caller sees it
	Root *os.File // its root directory: a walk from it crosses into the container's mounts
}

// Root is the container's root file system: an overlay of read-only layers and, above them, Upper.
type Root struct {
	Layers    []string // directories, the topmost first
	Upper     string   // "" is a root that cannot be written
	Work      string   // beside Upper, on the same file system
	Volatile  bool     // no syncs; what is in Upper is lost when the host crashes
	UserXattr bool     // rootless overlay
	NoDevices bool     // no device node in it can be opened, whoever made it; those that are mounted there can
}

// Cgroup is where the container's processes are.
type Cgroup interface {
	// JoinV1 are the open tasks files (write "0" to join), one a v1 hierarchy; nil on v2.
	JoinV1() []*os.File
	// DirV2 is the open directory of the v2 cgroup, for CLONE_INTO_CGROUP; nil on pure v1.
	DirV2() *os.File
	// PathV1 is where in the v1 hierarchy of these controllers a process is that has joined, both as /proc/PID/cgroup has them:
	// controllers with commas between them. "" is where it was before; known is false where nothing is known.
	PathV1(controllers string) (path string, known bool)
	// Path is the cgroup's path below the roots of its hierarchies, for Spec.Linux.CgroupsPath.
	Path() string
	// Spread makes the cgroup in hierarchies that only an OCI runtime uses, which it is called before.
	Spread()
}

// Starter starts bundles.
type Starter interface {
	// Name is recorded as Exit.Runtime: "direct", or the runtime's name and version.
	Name() string
	// Check reports whether this starter can start the spec; the error wraps ErrUnsupported and names the
	// field that it cannot do.
	Check(spec *specs.Spec) error
	// Start returns once the command was executed, or could not be. The error is a *StartError where the
	// command is to blame; any other error means that nothing is left.
	Start(ctx context.Context, b *Bundle) (Process, error)
}

// StartError says that the command could not be executed.
type StartError struct {
	Command string
	Errno   syscall.Errno // ENOENT: not there; EACCES, ENOEXEC, …: there, but cannot be run
}

func (e *StartError) Error() string { return "exec " + e.Command + ": " + e.Errno.Error() }

func (e *StartError) Unwrap() error { return e.Errno }

// Process is a started container.
type Process interface {
	Pid() int // of pid 1, as the caller sees it
	// Wait blocks until the container has ended: its pid 1, and with it all processes of its pid namespace.
	// It answers once; only one caller may wait.
	Wait() (Status, error)
	// Kill kills pid 1 and with it everything in the container. No error if it has ended.
	Kill() error
	// Signal sends a signal to the command: through the init where there is one.
	Signal(sig syscall.Signal) error
	// Exec runs a further process in the container, with all that confines it.
	Exec(ctx context.Context, e *Exec) (ExecProcess, error)
	// Console is the master of the container's terminal; nil without one.
	Console() *os.File
	// RootFS is the container's root, as an O_PATH descriptor that stays valid after the container has ended.
	RootFS() *os.File
	// Close frees what the process holds, after Wait.
	Close() error
}

// Status says how a process ended.
type Status struct {
	Code   int            // exit code, 0 where a signal ended it
	Signal syscall.Signal // that ended the command; 0 where none
	CPU    time.Duration  // user and system time of the process and what it waited for; 0 where unknown
}

// Exec is a further process in a running container.
type Exec struct {
	Process               *specs.Process // complete: args, env, cwd, user, capabilities, rlimits, …
	Stdin, Stdout, Stderr *os.File
}

// ExecProcess is a process that Exec started.
type ExecProcess interface {
	Pid() int
	Wait() (Status, error)
	Kill() error
	Console() *os.File
}
