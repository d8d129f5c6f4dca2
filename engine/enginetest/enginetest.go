// Package enginetest is the suite that every engine of berth must pass: what berth promises of an engine, as
// checks against real containers.
//
// A check returns an error instead of failing a test, so that the suite itself can be tested: with an engine
// that has one planted fault, the check that is named for it must fail.
package enginetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// Env is what the checks run against.
type Env struct {
	Engine berth.Engine
	// Image is ready to be started. Its root file system is RootFS; it has no entrypoint.
	Image berth.Image
	// Dir is a directory of this host, for what checks mount and keep. It is empty, and may be seen from containers.
	Dir string
	// Again opens the engine anew, as another process would; nil is an engine that does not outlive its process.
	Again func(context.Context) (berth.Engine, error)
	// Parallel has Run run the checks at once, as many as go test does: for engines that wait for a daemon.
	Parallel bool
	// Lendable are device nodes that stand for GPUs, as FakeGPUs makes them.
	Lendable []berth.Node
	// Blind is for how long from a container's start on the engine may not learn that its memory was out, and of what ended well also
	// until its end; 0 is an engine that always learns it.
	Blind time.Duration
	// Lacks says what this engine or this host cannot do, each with its reason.
	Lacks map[Ability]string
}

// Ability is something that not every engine or host can do.
type Ability string

// The abilities.
const (
	Isolation   Ability = "isolation"    // namespaces, capabilities, seccomp, masks
	MemoryLimit Ability = "memory limit" //
	CPULimit    Ability = "cpu limit"    //
	PIDsLimit   Ability = "pids limit"   //
	DiskLimit   Ability = "disk limit"   //
	UsageOf     Ability = "usage"        // CPU, memory and pids of containers
	Users       Ability = "users"        // containers of several users
	Mounts      Ability = "mounts"       // binds, tmpfs, read-only roots
	Limits      Ability = "ulimits"      // and sysctls
	Terminals   Ability = "terminals"    //
	Bridge      Ability = "bridge"       // a network of its own that reaches the host
	Ports       Ability = "ports"        // published on the host
	HostNetwork Ability = "host network" //
	Restart     Ability = "restart"      // containers outlive the process that started them
	Archives    Ability = "archives"     //
	Execs       Ability = "exec"         //
	Inits       Ability = "init"         // pid 1 is an init
	Grants      Ability = "lent devices" //
	Hooks       Ability = "hooks"        // OCI hooks of lent devices
)

// Check is one thing that must be true of an engine.
type Check struct {
	Name  string
	Needs []Ability
	// Run returns nil if it is true. It may be called concurrently, with the same Env too, and leaves nothing behind.
	Run func(context.Context, *Env) error
}

// checkMax is how long a check may take on a slow machine that has much else to do.
const checkMax = 5 * time.Minute

// Checks returns all checks, in a fixed order.
func Checks() []Check {
	return slices.Concat(ends(), streams(), processes(), lives(), files(), limits(), execs(), networks(), isolation(), grants())
}

// Run runs each check as a subtest. skips are the checks that are left out, each with its reason; so are those
// that need what env.Lacks. A skip of a check that does not exist fails.
func Run(t *testing.T, env *Env, skips map[string]string) {
	t.Helper()
	checks := Checks()
	for name := range skips {
		if !slices.ContainsFunc(checks, func(c Check) bool { return c.Name == name }) {
			t.Errorf("there is no check %q to skip", name)
		}
	}
	for _, c := range checks {
		t.Run(c.Name, func(t *testing.T) {
			if reason, ok := skips[c.Name]; ok {
				t.Skip("declared: " + reason)
			}
			for _, need := range c.Needs {
				if reason, ok := env.Lacks[need]; ok {
					t.Skipf("declared: no %s: %s", need, reason)
				}
			}
			if env.Parallel {
				t.Parallel()
			}
			if err := c.run(t.Context(), env); err != nil {
				t.Error(err)
			}
		})
	}
}

func (c Check) run(ctx context.Context, env *Env) error {
	ctx, cancel := context.WithTimeoutCause(ctx, checkMax, fmt.Errorf("the check %s took longer than %v", c.Name, checkMax))
	defer cancel()
	return c.Run(ctx, env)
}
