package berth

import (
	"encoding/json"
	"io"
	"os"
	"time"
)

// Limits bound what a task, a step or a volume may use. 0 is no limit. They are enforced, or refused with
// ErrUnsupported: never accepted and ignored.
type Limits struct {
	CPU    float64 `json:"cpu,omitempty"`    // cores; at least 0.01
	Memory int64   `json:"memory,omitempty"` // bytes, no swap beside it
	Disk   int64   `json:"disk,omitempty"`   // bytes: writable layers and volumes together
	PIDs   int64   `json:"pids,omitempty"`   // processes and threads; at most MaxPIDs; 0 is the engine's default, -1 none
}

// MaxPIDs is the largest limit of processes and threads that Linux takes, its PID_MAX_LIMIT.
const MaxPIDs = 4 << 20

// SandboxSpec describes the place in which a task's steps run.
type SandboxSpec struct {
	ID       string            `json:"id"`
	Labels   map[string]string `json:"labels,omitempty"`
	Limits   Limits            `json:"limits,omitzero"` // each step gets these unless its own are set; Disk is of the whole
	Volumes  []Volume          `json:"volumes,omitempty"`
	Network  Network           `json:"network,omitzero"`
	Hostname string            `json:"hostname,omitempty"` // "" is the ID
	Grants   []Grant           `json:"grants,omitempty"`   // lent devices
	// Bound: the sandbox ends with the process that opened it: when that process dies, its containers are
	// killed within two seconds and everything of the sandbox is removed.
	Bound bool `json:"bound,omitempty"`
	// Scratch are further host paths that belong to the sandbox: Close removes them, and so does the end of
	// a bound sandbox.
	Scratch []string `json:"scratch,omitempty"`
	// CgroupParent: the cgroup beneath which the sandbox's cgroups are made, by its path or, on daemons that have systemd make
	// cgroups, a slice; see CheckCgroupParent. "" is the engine's own.
	CgroupParent string `json:"cgroup_parent,omitempty"`
	// Loose: a step has a seccomp profile of its own, none, or capabilities, with which it could take its files out of a disk
	// quota. An engine keeps limits of disk otherwise then.
	Loose bool `json:"loose,omitempty"`
}

// Volume is a directory that is empty when the sandbox opens and shared by its steps, mounted at the same
// path in each.
type Volume struct {
	Path string `json:"path"`           // absolute, clean
	Size int64  `json:"size,omitempty"` // bytes; 0 is bounded only by Limits.Disk
	// CopyUp: what the first step's image holds at Path is copied into the empty volume, with owner and mode,
	// as Docker does for its volumes.
	CopyUp bool `json:"copy_up,omitempty"`
	// Mode of the directory where the image has none at Path; 0 is 0777 with the sticky bit.
	Mode os.FileMode `json:"mode,omitempty"`
}

// NetworkMode says what network a sandbox has.
type NetworkMode string

// The network modes. The zero value is NetworkNone. Other names are the engine's own networks (Docker).
const (
	NetworkNone   NetworkMode = "none"
	NetworkBridge NetworkMode = "bridge" // outbound by NAT, and the host's resolver
	NetworkHost   NetworkMode = "host"
)

// Network is the network of a sandbox.
type Network struct {
	Mode  NetworkMode `json:"mode,omitempty"`
	Hosts []string    `json:"hosts,omitempty"` // "name:address", into /etc/hosts
	Ports []Port      `json:"ports,omitempty"` // published; Docker only, with a network of the container's own
}

// Port is a published port.
type Port struct {
	HostIP    string `json:"host_ip,omitempty"`
	Host      uint16 `json:"host,omitempty"` // 0: any that is free; see Publisher
	Container uint16 `json:"container"`
	Protocol  string `json:"protocol,omitempty"` // "tcp" (default) or "udp"
}

// StepSpec describes one container.
type StepSpec struct {
	ID         string   `json:"id"`
	Image      Image    `json:"image"`
	Entrypoint []string `json:"entrypoint"`           // nil is the image's; empty clears it
	Command    []string `json:"command"`              // nil is the image's Cmd, unless Entrypoint is set
	Env        []string `json:"env,omitempty"`        // "K=V", over the image's
	WorkingDir string   `json:"workdir,omitempty"`    // "" and "." are the image's; made where it is not there
	User       string   `json:"user,omitempty"`       // "name|uid[:group|gid]"; "" is the image's
	Groups     []string `json:"groups,omitempty"`     // supplementary, names or gids
	Mounts     []Mount  `json:"mounts,omitempty"`     //
	Devices    []Device `json:"devices,omitempty"`    // beyond the sandbox's grants
	ShmSize    int64    `json:"shm_size,omitempty"`   // bytes of /dev/shm; 0 is 64 MiB
	ReadOnly   bool     `json:"read_only,omitempty"`  // root file system
	NoInit     bool     `json:"no_init,omitempty"`    // the command itself is pid 1
	TTY        bool     `json:"tty,omitempty"`        // stdin, stdout and stderr are one terminal; its log is stdout
	OpenStdin  bool     `json:"open_stdin,omitempty"` // stdin is a pipe (see StdinWriter); else it is empty

	// Stdin, Stdout and Stderr are container paths: stdin is read from the one, what is written is also kept,
	// whole, in the others. Those must lie in a volume.
	Stdin  string `json:"stdin,omitempty"`
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`

	CapAdd   []string          `json:"cap_add,omitempty"`  // "NET_ADMIN", "ALL"; with or without CAP_
	CapDrop  []string          `json:"cap_drop,omitempty"` //
	Seccomp  string            `json:"seccomp,omitempty"`  // "" is Docker's default profile, "unconfined" none, else the profile's JSON
	AppArmor string            `json:"apparmor,omitempty"` // a profile that the host has loaded, or "unconfined"; "" is the engine's own way
	SELinux  []string          `json:"selinux,omitempty"`  // of the label, as Docker takes it: "type:T", "level:L", …, or "disable"; see CheckSELinux
	Sysctls  map[string]string `json:"sysctls,omitempty"`
	Ulimits  []Ulimit          `json:"ulimits,omitempty"`
	Runtime  string            `json:"runtime,omitempty"` // "direct", "auto", or a name or path of an OCI runtime; "" is the engine's
	Labels   map[string]string `json:"labels,omitempty"`
	Limits   Limits            `json:"limits,omitzero"` // 0 fields: the sandbox's
	Platform string            `json:"platform,omitempty"`

	Timeout    time.Duration `json:"timeout,omitempty"`     // kept by the engine, so that it holds when berth is gone
	StopSignal string        `json:"stop_signal,omitempty"` // "" is the image's, else TERM
	Grace      time.Duration `json:"grace,omitempty"`       // between the stop signal and KILL at Timeout; 0 kills at once

	// Ephemeral: the engine keeps nothing of what the step writes but what is in LogDir. Where a daemon has to keep a
	// copy for a process that comes later, it does not: then the output of a container that outlives the process is
	// not whole, and has a mark where some may be missing.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// LogDir: the host directory in which the files stdout and stderr are kept beyond the container's removal.
	// "" keeps them with the container. LogLimit bounds each, in bytes: the head is freed, the tail kept;
	// 0 is the engine's default (64 MiB), -1 none.
	LogDir   string `json:"log_dir,omitempty"`
	LogLimit int64  `json:"log_limit,omitempty"`
	// Hold: a reader with LogOptions.Hold will come for each of the logs. Until it has, too, nothing is dropped, and the
	// container waits in its write when it is a whole LogLimit ahead. It holds while the sandbox is bound to the process
	// that starts the step.
	Hold bool `json:"hold,omitempty"`
}

// MountType says what a Mount mounts.
type MountType string

// The mount types. The zero value is MountBind.
const (
	MountBind  MountType = "bind"
	MountTmpfs MountType = "tmpfs"
)

// Mount is something mounted into one step beside the sandbox's volumes. Targets that are not there are
// made. Mounts are ordered by the depth of their target, whatever their order in the spec.
type Mount struct {
	Type     MountType `json:"type,omitempty"`
	Source   string    `json:"source,omitempty"` // host path of a bind
	Target   string    `json:"target"`           // container path, absolute
	ReadOnly bool      `json:"read_only,omitempty"`
	// Copy, of a bind that is read-only: what the source holds when the step starts is enough. An engine on another machine
	// mounts a copy; it refuses other binds, with ErrUnsupported.
	Copy    bool     `json:"copy,omitempty"`
	Size    int64    `json:"size,omitempty"` // bytes of a tmpfs; 0 is half the machine's memory
	Options []string `json:"options,omitempty"`
}

// Device is a device node of this host given to a step.
type Device struct {
	Host        string `json:"host"`
	Container   string `json:"container,omitempty"`   // "" is Host
	Permissions string `json:"permissions,omitempty"` // of "rwm"; "" is all
}

// Ulimit is a resource limit with the names of ulimit(1): "nofile", "nproc", "core", …
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"` // -1 is unlimited
	Hard int64  `json:"hard"`
}

// Grant is one lent device, a slice of one, or a share of one. Engines use what they can of it: all, or an error.
type Grant struct {
	CDI    string `json:"cdi,omitempty"` // its name in the CDI spec on this host's disk that Edits are of; "" if they are of none
	Vendor string `json:"vendor"`        // "nvidia", "amd", "intel"
	UUID   string `json:"uuid"`
	Index  int    `json:"index"`            // among the host's devices of the vendor, for people
	Memory int64  `json:"memory,omitempty"` // bytes of the device's memory, of a share; 0 is all of it
	// Nodes are the device nodes that a container with this grant holds, with their numbers at the time of
	// lending. Those that all devices of a vendor need are in each of its grants.
	Nodes        []Node   `json:"nodes,omitempty"`
	GIDs         []uint32 `json:"gids,omitempty"` // groups that a user other than root needs to open the nodes
	Capabilities []string `json:"capabilities,omitempty"`
	// Edits are what brings the device into a container, as CDI's containerEdits: complete with hooks, mounts
	// and environment. What all devices of a vendor need is in the first grant of that vendor alone; what
	// depends on the whole set of grants (BERTH_GPUS, the vendors' masks) is in the last grant.
	Edits json.RawMessage `json:"edits,omitempty"`
}

// Node is a device node with its type and numbers on this host.
type Node struct {
	Device
	Type  string `json:"type"` // "c" or "b"
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// Stdio are the streams of an Exec. A nil stream is empty or discarded.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
	// Resize, where the exec has a terminal, brings its new sizes.
	Resize <-chan Size
}

// Size is the size of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// ExecSpec describes a further command in a running container.
type ExecSpec struct {
	Command    []string
	Env        []string // over the container's own
	WorkingDir string   // "" and "." are the container's; else absolute
	User       string   // "" is the container's
	TTY        bool
	Privileged bool // no: berth never widens what the container has; ErrUnsupported
}

// LogOptions choose what Logs reads.
type LogOptions struct {
	Stderr bool      // false reads stdout
	Follow bool      // go on until the container has ended
	Tail   int       // the last lines only; 0 is all, -1 none (with Follow: only what comes)
	Since  time.Time //
	Offset int64     // bytes from the start of the stream, counting dropped bytes
	// Hold, with Follow: nothing is dropped before this reader has read it. The container waits in its write
	// when it is a whole LogLimit ahead. One that fails holds it no longer, though it was announced.
	Hold bool
}
