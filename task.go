package berth

import (
	"encoding/json"
	"time"
)

// Task is what a user submits, in the terms of GA4GH TES 1.1 and berth's own additions.
type Task struct {
	ID          string            `json:"id"`
	Name        string            `json:"name,omitempty"`
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"` // TES tags
	Steps       []Step            `json:"steps"`
	Inputs      []Input           `json:"inputs,omitempty"`
	Outputs     []Output          `json:"outputs,omitempty"`
	Volumes     []Volume          `json:"volumes,omitempty"`
	Resources   Resources         `json:"resources,omitzero"`
	Network     Network           `json:"network,omitzero"`
	Hostname    string            `json:"hostname,omitempty"`
	// CgroupParent is the cgroup beneath which those of the task are made; see SandboxSpec.
	CgroupParent string        `json:"cgroup_parent,omitempty"`
	Timeout      time.Duration `json:"timeout,omitempty"` // of all steps together
	Grace        time.Duration `json:"grace,omitempty"`   // between TERM and KILL; negative is the default of 10 s
	Pull         PullPolicy    `json:"pull,omitempty"`
	Insecure     bool          `json:"insecure,omitempty"`  // registries without TLS
	NoWait       bool          `json:"no_wait,omitempty"`   // refuse where the machine has no room now
	Ephemeral    bool          `json:"ephemeral,omitempty"` // a daemon keeps nothing of what is written; see StepSpec
	Keep         bool          `json:"keep,omitempty"`      // keep the sandbox after the end, for a look
	RunAgain     bool          `json:"run_again,omitempty"` // a Lost step may be run again
	// Engine names the engine that runs the task, and Daemon where that is; "" is the embedded engine.
	Engine string `json:"engine,omitempty"`
	Daemon string `json:"daemon,omitempty"`
	// CallerDir is the directory against which relative host paths of inputs and outputs were resolved.
	CallerDir string `json:"caller_dir,omitempty"`
}

// Resources are what a task asks for. What is asked for is reserved, and is the limit.
type Resources struct {
	Limits
	Preemptible bool              `json:"preemptible,omitempty"`
	Zones       []string          `json:"zones,omitempty"`
	Backend     map[string]string `json:"backend_parameters,omitempty"`
	GPUs        json.RawMessage   `json:"gpus,omitempty"` // in the language of device.ParseRequests
	// AllowedGPUs are those that whoever submitted the task may use, where a resource manager's mask bounds them, by what
	// device.Unit.Key says; nil is all.
	AllowedGPUs []string `json:"allowed_gpus,omitempty"`
}

// Step is one container of a task.
type Step struct {
	Image       string            `json:"image"`
	Fallbacks   []string          `json:"fallbacks,omitempty"` // images that do instead, in their order, where Image cannot be had
	Entrypoint  []string          `json:"entrypoint"`          // nil is the image's
	Command     []string          `json:"command"`             // nil is the image's
	Env         []string          `json:"env,omitempty"`
	WorkingDir  string            `json:"workdir,omitempty"`
	Stdin       string            `json:"stdin,omitempty"`  // container path
	Stdout      string            `json:"stdout,omitempty"` // container path
	Stderr      string            `json:"stderr,omitempty"` // container path
	IgnoreError bool              `json:"ignore_error,omitempty"`
	User        string            `json:"user,omitempty"`
	Groups      []string          `json:"groups,omitempty"`
	Mounts      []Mount           `json:"mounts,omitempty"`
	Devices     []Device          `json:"devices,omitempty"`
	ShmSize     int64             `json:"shm_size,omitempty"`
	ReadOnly    bool              `json:"read_only,omitempty"`
	NoInit      bool              `json:"no_init,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	OpenStdin   bool              `json:"open_stdin,omitempty"`
	CapAdd      []string          `json:"cap_add,omitempty"`
	CapDrop     []string          `json:"cap_drop,omitempty"`
	Seccomp     string            `json:"seccomp,omitempty"`
	AppArmor    string            `json:"apparmor,omitempty"`
	SELinux     []string          `json:"selinux,omitempty"`
	Sysctls     map[string]string `json:"sysctls,omitempty"`
	Ulimits     []Ulimit          `json:"ulimits,omitempty"`
	Runtime     string            `json:"runtime,omitempty"`
	Platform    string            `json:"platform,omitempty"`
	StopSignal  string            `json:"stop_signal,omitempty"`
}

// FileType tells a file from a directory, in the words of TES.
type FileType string

// The file types. The zero value is found out (inputs) or is File (outputs).
const (
	File      FileType = "FILE"
	Directory FileType = "DIRECTORY"
)

// Input is something that a task's steps find at Path.
type Input struct {
	Name    string   `json:"name,omitempty"`
	URL     string   `json:"url,omitempty"`     // file://, http(s)://, or an absolute host path
	Content *string  `json:"content,omitempty"` // in place of URL
	Path    string   `json:"path"`              // in the container, absolute
	Type    FileType `json:"type,omitempty"`
}

// Output is something that a task's steps leave at Path.
type Output struct {
	Name string `json:"name,omitempty"`
	URL  string `json:"url"`  // file:// or an absolute host path
	Path string `json:"path"` // in the container, absolute; may hold * ? [...] and **
	// PathPrefix is taken off each match of a pattern in Path; what is left is appended to URL.
	PathPrefix string   `json:"path_prefix,omitempty"`
	Type       FileType `json:"type,omitempty"`
	Optional   bool     `json:"optional,omitempty"` // no error if it was not produced
}

// OutputFile is one file that was collected.
type OutputFile struct {
	URL  string `json:"url"`
	Path string `json:"path"`       // in the container
	Size int64  `json:"size_bytes"` // bytes
}

// StepResult is how one step ended.
type StepResult struct {
	Index int   `json:"index"`
	Exit  Exit  `json:"exit"`
	Image Image `json:"image,omitzero"`
}

// LentGPU is a GPU, a slice of one or a share of one that a task had.
type LentGPU struct {
	Vendor string `json:"vendor"` // "nvidia", "amd", "intel"
	UUID   string `json:"uuid"`
	Index  int    `json:"index"`            // among the host's of the vendor
	Memory int64  `json:"memory,omitempty"` // bytes, of a share
}

// Result is how a task ended, as `berth run --result` writes it.
type Result struct {
	ID              string       `json:"id"`
	Name            string       `json:"name,omitempty"`
	State           State        `json:"state"`
	Reason          Reason       `json:"reason,omitempty"`
	ExitCode        int          `json:"exit_code"`
	Signal          int          `json:"signal"`
	Detail          string       `json:"detail"`
	Started         *time.Time   `json:"started"`
	Ended           *time.Time   `json:"ended"`
	Usage           Usage        `json:"usage"`
	DiskEnforcement string       `json:"disk_enforcement"` // "none", "quota", "loop", "sampled"
	Image           string       `json:"image"`
	ImageDigest     string       `json:"image_digest"` // of its manifest; of an image that has none, because it was imported, its ID
	Engine          string       `json:"engine"`
	Runtime         string       `json:"runtime"`
	Outputs         []OutputFile `json:"outputs"`
	GPUs            []LentGPU    `json:"gpus,omitempty"`
	Kept            string       `json:"kept,omitempty"` // the host directory of what Task.Keep kept
	Steps           []StepResult `json:"steps,omitempty"`
}
