package berth

import "time"

// Reason says why a container ended. It is never guessed: what cannot be known is Lost.
type Reason string

// The reasons.
const (
	// Exited: the command ended by itself; Exit.Code is its exit code, whatever it is.
	Exited Reason = "Exited"
	// Signaled: a signal that berth did not send ended the command; Exit.Signal is its number.
	Signaled Reason = "Signaled"
	// OutOfMemory: the kernel's kill counter of the container's cgroup rose and the exit was not 0.
	OutOfMemory Reason = "OutOfMemory"
	// OutOfDisk: a disk limit was full and the exit was not 0, or the sampler ended the container.
	OutOfDisk Reason = "OutOfDisk"
	// TimedOut: the time limit was reached.
	TimedOut Reason = "TimedOut"
	// Canceled by Container.Stop.
	Stopped Reason = "Canceled"
	// Preempted: whoever lent the place took it back, and nobody asked for the task's end: a cluster, or who ended the
	// monitor of the embedded engine.
	Preempted Reason = "Preempted"
	// Lost: the engine can no longer say; whoever knew was killed.
	Lost Reason = "Lost"
	// NeverStarted: the command cannot be run (Exit.Code is 126) or is not there (127).
	NeverStarted Reason = "NeverStarted"
)

// Exit says how a container ended.
type Exit struct {
	Reason  Reason    `json:"reason"`
	Code    int       `json:"exit_code"`        // of the process; 128+n where signal n ended it; -1 where unknown
	Signal  int       `json:"signal,omitempty"` // 0 where none
	Detail  string    `json:"detail,omitempty"` // which limit and by how much, or the kernel's or engine's words
	Started time.Time `json:"started,omitzero"` // zero where it never ran, or nobody knows when
	Ended   time.Time `json:"ended,omitzero"`   // of one that is Lost: when that was found
	Usage   Usage     `json:"usage,omitzero"`
	// Unverified says why it was not seen whether the container held what it was lent; "" where it was seen, or
	// nothing was lent.
	Unverified string `json:"unverified,omitempty"`
	// Unfilled says which files of StepSpec.Stdout and Stderr lack some of what was written, and why, as where a disk was full;
	// "" where none does.
	Unfilled string `json:"unfilled,omitempty"`
	Runtime  string `json:"runtime,omitempty"` // what started it: "direct", "runc 1.1.5", …
}

// OK reports whether the command ran and exited with 0.
func (e Exit) OK() bool { return e.Reason == Exited && e.Code == 0 }

// Usage is what a container used. A nil field is unknown, which is not zero.
type Usage struct {
	CPUSeconds   *float64 `json:"cpu_seconds,omitempty"`
	PeakMemory   *int64   `json:"peak_memory_bytes,omitempty"` // bytes
	Memory       *int64   `json:"memory_bytes,omitempty"`      // bytes, now; only while running
	BytesRead    *int64   `json:"bytes_read,omitempty"`        // from block devices
	BytesWritten *int64   `json:"bytes_written,omitempty"`     // to block devices
	PeakPIDs     *int64   `json:"peak_pids,omitempty"`
	PIDs         *int64   `json:"pids,omitempty"`       // now; only while running
	DiskUsed     *int64   `json:"disk_bytes,omitempty"` // scratch: writable layer and volumes
	GPUs         []GPUUse `json:"gpus,omitempty"`       // of those that it was lent
}

// GPUUse is what a lent GPU, slice or share did meanwhile, by samples of each second. A nil field is unknown, which
// is not zero.
type GPUUse struct {
	UUID       string   `json:"uuid"`
	PeakMemory *int64   `json:"peak_memory_bytes,omitempty"` // bytes: of the whole GPU or slice; of a share what its processes had
	Busy       *float64 `json:"mean_busy_percent,omitempty"` // of the time
	Energy     *float64 `json:"energy_joules,omitempty"`
	Unknown    string   `json:"unknown,omitempty"` // why not all is known
}
