package wire

import (
	"encoding/json"
	"path"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// Op names what a request asks for.
type Op string

// The operations. Each takes the fields of Request named beside it.
const (
	OpHello   Op = "hello"   //
	OpOpen    Op = "open"    // Spec; a bound sandbox ends with this connection
	OpBind    Op = "bind"    // Sandbox; as OpOpen of a bound sandbox, after the monitor was started anew
	OpAttach  Op = "attach"  // Sandbox
	OpVolume  Op = "volume"  // Sandbox, Path; answers with the directory
	OpStart   Op = "start"   // Sandbox, Start; answers when it was started and, if that went well, as OpWait
	OpFind    Op = "find"    // Sandbox, Container; with Path "process" it answers the OCI process too
	OpWait    Op = "wait"    // Sandbox, Container; answers when it has ended
	OpStop    Op = "stop"    // Sandbox, Container, Grace; answers when it has ended
	OpSignal  Op = "signal"  // Sandbox, Container, Signal
	OpRemove  Op = "remove"  // Sandbox, Container
	OpStats   Op = "stats"   // Sandbox, Container
	OpStdin   Op = "stdin"   // Sandbox, Container; answers with the write end
	OpConsole Op = "console" // Sandbox, Container; answers with the terminal's master
	OpRoot    Op = "root"    // Sandbox, Container; answers with the root directory
	OpExec    Op = "exec"    // Sandbox, Container, Exec, and its streams; answers twice: started, ended
	OpLeave   Op = "leave"   // between those two: the command runs on without its client
	OpFollow  Op = "follow"  // Sandbox, Container, Stream; answers with Progress until the end
	OpClose   Op = "close"   // Sandbox
	OpKeep    Op = "keep"    // Sandbox; it no longer ends with its client
	OpList    Op = "list"    //
)

// Request is what the engine asks.
type Request struct {
	Op        Op                 `json:"op"`
	Sandbox   string             `json:"sandbox,omitempty"`
	Container string             `json:"container,omitempty"`
	Spec      *berth.SandboxSpec `json:"spec,omitempty"`
	Start     *Start             `json:"start,omitempty"`
	Exec      *Exec              `json:"exec,omitempty"`
	Path      string             `json:"path,omitempty"`
	Signal    int                `json:"signal,omitempty"`
	Grace     time.Duration      `json:"grace,omitempty"`
	Stream    string             `json:"stream,omitempty"` // "stdout" or "stderr"
	Ack       int64              `json:"ack,omitempty"`    // after OpFollow: the reader has come this far
}

// Start is a step that is ready to be started.
type Start struct {
	Step    berth.StepSpec  `json:"step"`
	Spec    json.RawMessage `json:"-"`       // the OCI runtime spec; it goes behind the message
	Size    int             `json:"oci"`     // of Spec, in bytes; Send sets it
	Layers  []string        `json:"layers"`  // directories, the topmost first
	Runtime string          `json:"runtime"` // "direct", "auto", or the path of an OCI runtime
	// DefaultSeccomp: Spec has no seccomp profile, and gets Docker's default one for its capabilities. It is
	// most of a spec's size, and the same each time.
	DefaultSeccomp bool `json:"default_seccomp,omitempty"`
	// Lent are the device nodes of the sandbox's grants, with which the container is compared before it starts.
	Lent []berth.Node `json:"lent,omitempty"`
	// Needed are those of them, on the host, that the container's user is to be able to open.
	Needed []string `json:"needed,omitempty"`
	// Places are where what was lent is mounted, the same in all containers of the sandbox, as AddPlace has made it: one text
	// takes the JSON decoder a hundredth of what as many objects do.
	Places string `json:"places,omitempty"`
}

// AddPlace adds a path in a container, where a file or directory is mounted, to places. One with a line break is left out: a
// container makes that place for itself.
func AddPlace(places *strings.Builder, at string, dir bool) {
	at = path.Clean("/" + at)
	if strings.ContainsRune(at, '\n') {
		return
	}
	places.WriteString(at)
	if dir {
		places.WriteByte('/')
	}
	places.WriteByte('\n')
}

// EachPlace gives the paths in places to f, absolute and clean.
func EachPlace(places string, f func(at string, dir bool)) {
	for line := range strings.Lines(places) {
		at := strings.TrimSuffix(line, "\n")
		f(path.Clean("/"+at), strings.HasSuffix(at, "/"))
	}
}

// Exec is a further process in a running container.
type Exec struct {
	Process json.RawMessage `json:"process"` // OCI
	TTY     bool            `json:"tty,omitempty"`
}

// Answer is what the monitor answers.
type Answer struct {
	Err         *Error                `json:"err,omitempty"`
	Version     int                   `json:"version,omitempty"`
	Pid         int                   `json:"pid,omitempty"`
	Enforcement berth.DiskEnforcement `json:"enforcement,omitempty"`
	Sandbox     *Sandbox              `json:"sandbox,omitempty"`
	Container   *Container            `json:"container,omitempty"`
	Exit        *berth.Exit           `json:"exit,omitempty"`
	Usage       *berth.Usage          `json:"usage,omitempty"`
	List        []berth.Status        `json:"list,omitempty"`
	Progress    *Progress             `json:"progress,omitempty"`
}

// Sandbox is what the engine needs to know of an open sandbox.
type Sandbox struct {
	Spec        berth.SandboxSpec     `json:"spec,omitzero"` // zero in the answer to OpOpen: it is the one that was asked for
	Enforcement berth.DiskEnforcement `json:"enforcement"`
	Volumes     map[string]string     `json:"volumes,omitempty"` // container path: directory, as the monitor sees it
	Files       string                `json:"files,omitempty"`   // directory of hosts, hostname and resolv.conf
	Address     string                `json:"address,omitempty"`
	CgroupPath  string                `json:"cgroup,omitempty"` // below which its containers' cgroups are
}

// Container is what the engine needs to know of a container.
type Container struct {
	Step   berth.StepSpec       `json:"step"` // zero in the answer to OpStart
	State  berth.ContainerState `json:"state"`
	Pid    int                  `json:"pid,omitempty"`
	LogDir string               `json:"log_dir"`
	// LogPrefix begins the names of its logs there, before "stdout" and "stderr".
	LogPrefix string          `json:"log_prefix,omitempty"`
	Runtime   string          `json:"runtime,omitempty"`
	Notes     []string        `json:"notes,omitempty"`   // what was clamped or adapted at the start
	Process   json.RawMessage `json:"process,omitempty"` // OCI; only where it was asked for
}

// Progress tells how far a log has come.
type Progress struct {
	End     int64 `json:"end"`     // bytes written so far
	Dropped int64 `json:"dropped"` // bytes from the start that are gone
	Done    bool  `json:"done,omitempty"`
}
