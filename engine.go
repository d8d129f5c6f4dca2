package berth

import (
	"context"
	"io"
	"os"
	"syscall"
	"time"
)

// Engine runs containers: this host, a daemon, or a cluster. All methods may be called concurrently.
type Engine interface {
	// Info says what the engine is and can do. It does not block on anything slow.
	Info(ctx context.Context) (Info, error)
	// Open makes the place in which a task's steps run. Opening the same ID with the same spec again gives
	// the same sandbox; with another spec it is ErrConflict.
	Open(ctx context.Context, spec SandboxSpec) (Sandbox, error)
	// Attach finds a sandbox again, after a restart too. ErrNotFound if there is none.
	Attach(ctx context.Context, id string) (Sandbox, error)
	// List names everything that this owner has on the engine, for reconciliation and cleanup.
	List(ctx context.Context) ([]Status, error)
}

// Sandbox is the place in which a task's steps run: volumes, devices, network, limits of the whole.
type Sandbox interface {
	ID() string
	// Start runs a step. It is idempotent by ID: the same ID and spec is the same container, running or
	// ended; another spec is ErrConflict. A command that is not there or cannot be run is no error: Wait
	// answers NeverStarted. An error means that no container is left.
	Start(ctx context.Context, spec StepSpec) (Container, error)
	// Container finds a step of this sandbox that was started earlier. ErrNotFound if there is none.
	Container(ctx context.Context, id string) (Container, error)
	// Volume is the directory, on this host, of the volume that is mounted at the container path. The
	// returned directory is open and stays valid until it is closed. ErrUnsupported where no disk is shared
	// (see VolumeArchiver), ErrNotFound if there is no such volume.
	Volume(ctx context.Context, path string) (*os.Root, error)
	// DiskEnforcement says how Limits.Disk and sized volumes are kept.
	DiskEnforcement() DiskEnforcement
	// Close ends what still runs and removes everything of the sandbox. No error if it is gone.
	Close(ctx context.Context) error
}

// Container is a started step. It outlives the process that started it.
type Container interface {
	ID() string
	// Wait blocks until the container has ended. Ending ctx ends the wait, never the container; the error
	// is then context.Cause(ctx). After the container has ended Wait answers at once, always the same.
	Wait(ctx context.Context) (Exit, error)
	// Stop sends the container's stop signal (TERM unless its spec or image says otherwise), and after grace
	// KILL to everything in it. A grace of 0 kills at once. It returns when the container has ended; no
	// error if it had ended before. The exit's reason is Canceled, unless it ended by itself before.
	Stop(ctx context.Context, grace time.Duration) error
	// Remove removes an ended container, ending it first where it runs. Its logs stay where StepSpec.LogDir
	// says. No error if it is gone.
	Remove(ctx context.Context) error
}

// The optional abilities of a Container, found by type assertion.
type (
	// LogReader reads what a container wrote, while it runs and after.
	LogReader interface {
		Logs(ctx context.Context, opts LogOptions) (io.ReadCloser, error)
	}
	// Signaler sends a signal to the container's command. ErrConflict if it has ended.
	Signaler interface {
		Signal(ctx context.Context, sig syscall.Signal) error
	}
	// Execer runs a further command in a running container. ErrConflict if it has ended. Where ctx ends with the
	// cause ErrDetached, the command runs on; otherwise that is the engine's to choose.
	Execer interface {
		Exec(ctx context.Context, spec ExecSpec, stdio Stdio) (Exit, error)
	}
	// Statser reads live usage. ErrConflict if the container has ended.
	Statser interface {
		Stats(ctx context.Context) (Usage, error)
	}
	// Addresser says the container's IP address. ErrNotFound if it has no network of its own.
	Addresser interface {
		Address(ctx context.Context) (string, error)
	}
	// Publisher says at which ports of the machine the container's published ones are; none where nothing is published, or
	// the container does not run.
	Publisher interface {
		Published(ctx context.Context) ([]Port, error)
	}
	// StdinWriter feeds a container started with StepSpec.OpenStdin. Closing the writer is end of file.
	StdinWriter interface {
		Stdin(ctx context.Context) (io.WriteCloser, error)
	}
	// Terminal resizes the terminal of a container started with StepSpec.TTY.
	Terminal interface {
		Resize(ctx context.Context, rows, cols uint16) error
	}
	// Archiver reads a file or directory out of a container's root, running or ended, as a tar stream whose
	// names begin with the base name of path. A symbolic link is archived as such; nothing outside the
	// container's root is ever read. ErrNotFound if path is not there.
	Archiver interface {
		Archive(ctx context.Context, path string) (io.ReadCloser, error)
	}
)

// VolumeArchiver is a Sandbox whose volumes may lie on another machine, where Volume is ErrUnsupported: it reads a file or
// directory of a volume, by its path in the containers, as Archiver does. The directories above path are no links.
// ErrNotFound if path is not there, or no step of the sandbox was started.
type VolumeArchiver interface {
	ArchiveVolume(ctx context.Context, path string) (io.ReadCloser, error)
}

// Puller makes an image ready to be started; an Engine that has it (all that run on one machine do).
type Puller interface {
	// Image finds or pulls an image. All who wait for the same image share one pull.
	// Errors: ErrNotFound (no such image or tag, or not for the platform), ErrDenied, ErrUnavailable,
	// ErrExhausted (disk full), ErrInvalid (reference, corrupt layer), ErrUnsupported (library://, oras://, SIF).
	Image(ctx context.Context, req ImageRequest) (Image, error)
}

// DiskEnforcement says how a disk limit is kept.
type DiskEnforcement string

// The ways to keep a disk limit.
const (
	DiskNone    DiskEnforcement = "none"    // no limit was asked for
	DiskQuota   DiskEnforcement = "quota"   // project quota: hard
	DiskLoop    DiskEnforcement = "loop"    // a file system of its own in a file: hard
	DiskSampled DiskEnforcement = "sampled" // looked at each second: it may be overshot by what is written in one
)

// PullPolicy says when an image is fetched from its registry.
type PullPolicy string

// The pull policies. The zero value is PullMissing.
const (
	PullMissing PullPolicy = "missing"
	PullAlways  PullPolicy = "always"
	PullNever   PullPolicy = "never"
)

// ImageRequest asks for an image.
type ImageRequest struct {
	Ref      string     // as a user writes it: "debian:12", "host:5000/img", "repo@sha256:…"
	Policy   PullPolicy //
	Platform string     // "os/arch[/variant]"; "" is this machine's
	Insecure bool       // http, or TLS that cannot be verified, beyond loopback
	Progress func(Progress)
}

// Progress tells how far a pull is. It may be called from several goroutines.
type Progress struct {
	Phase string // "resolve", "download", "unpack", "done"; "retry" where a try has failed, and another is made
	Layer string // digest, or "" for the whole
	Done  int64  // bytes
	Total int64  // bytes; 0 is unknown
	Why   string // of "retry": which try failed, and how, for people
}

// Image is an image that is ready to be started.
type Image struct {
	Ref    string      `json:"ref"`              // as asked for, normalised
	ID     string      `json:"id"`               // what the engine calls it; goes into StepSpec.Image.ID
	Digest string      `json:"digest,omitempty"` // "sha256:…" of the manifest; "" where unknown
	Config ImageConfig `json:"config"`
}

// ImageConfig is what the image says about how it wants to be run, with the names of the OCI image spec.
type ImageConfig struct {
	User         string            `json:"User,omitempty"`
	Env          []string          `json:"Env,omitempty"`
	Entrypoint   []string          `json:"Entrypoint,omitempty"`
	Cmd          []string          `json:"Cmd,omitempty"`
	Volumes      []string          `json:"Volumes,omitempty"` // container paths, sorted
	WorkingDir   string            `json:"WorkingDir,omitempty"`
	StopSignal   string            `json:"StopSignal,omitempty"`
	Labels       map[string]string `json:"Labels,omitempty"`
	Architecture string            `json:"Architecture,omitempty"`
	OS           string            `json:"OS,omitempty"`
	Variant      string            `json:"Variant,omitempty"`
}

// Info says what an engine is and what it can do.
type Info struct {
	Name    string   // "oci", "docker", …
	Version string   // of the engine, with its components
	Total   Limits   // what the machine has; 0 is unknown
	Places  bool     // a cluster, which chooses node and devices itself
	Offers  []Offer  // what this host can do, for people
	Lacks   []Lack   // what this host cannot do, each with its remedy
	Runtime []string // OCI runtimes that can be chosen
}

// Offer is something that this host can do, and how.
type Offer struct {
	What string `json:"what"`
	How  string `json:"how"`
}

// Lack is something that this host cannot do.
type Lack struct {
	What   string `json:"what"`
	Why    string `json:"why"`
	Remedy string `json:"remedy"`
}

// Status is one container or sandbox in a List.
type Status struct {
	Sandbox   string            `json:"sandbox"`
	Container string            `json:"container,omitempty"` // "" for the sandbox itself
	State     ContainerState    `json:"state"`
	Labels    map[string]string `json:"labels,omitempty"`
	Exit      *Exit             `json:"exit,omitempty"` // of an ended container
}

// ContainerState is where a container stands.
type ContainerState string

// The states of a container. A sandbox is Created until it is closed.
const (
	ContainerCreated ContainerState = "created"
	ContainerRunning ContainerState = "running"
	ContainerEnded   ContainerState = "ended"
)
