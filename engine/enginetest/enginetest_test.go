package enginetest_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/enginetest"
)

// beyond are the checks that the fake engine cannot pass: it isolates nothing and limits nothing, and the suite
// must see that. All others it must pass.
var beyond = []string{
	"logs are bounded",
	"hostname", "init", "no init",
	"out of memory", "out of memory in a child", "out of memory survived", "memory limit of the sandbox", "no swap", "too little memory to start",
	"pids limit", "pids are limited by default",
	"out of disk", "out of disk in a volume", "out of disk survived", "size of a volume",
	"no network",
	"own processes only", "own namespaces", "no mounting", "devices", "null device of its own", "masked paths", "read-only paths",
	"capabilities", "capabilities added and dropped", "no new privileges", "seccomp", "seccomp profile of the user",
	"descriptors", "cgroup",
	"lent device and no other",
}

func TestFake(t *testing.T) {
	env := newFake(t, faults{})
	for _, c := range enginetest.Checks() {
		if lacking(env, c) {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			err := c.Run(t.Context(), env)
			if caught := err != nil; caught != slices.Contains(beyond, c.Name) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Cleanup(func() {
		if left, err := env.Engine.List(t.Context()); err == nil && len(left) > 0 {
			t.Errorf("the checks left %+v", left)
		}
	})
}

func lacking(env *enginetest.Env, c enginetest.Check) bool {
	return slices.ContainsFunc(c.Needs, func(a enginetest.Ability) bool { _, ok := env.Lacks[a]; return ok })
}

// TestFaults plants one fault each, which the named check must catch.
func TestFaults(t *testing.T) {
	checks := map[string]enginetest.Check{}
	for _, c := range enginetest.Checks() {
		if _, twice := checks[c.Name]; twice {
			t.Errorf("two checks are named %q", c.Name)
		}
		checks[c.Name] = c
	}
	for _, f := range []struct {
		name   string
		faults faults
		caught []string // by each of these checks
	}{
		{"the last byte of output is lost", faults{dropLastByte: true}, []string{"output to the byte", "output apart", "output is complete at the end", "output at full speed"}},
		{"standard error is in standard output", faults{mergeStderr: true}, []string{"output apart"}},
		{"streams are files", faults{streamsAreFiles: true}, []string{"output through /dev"}},
		{"containers share a log", faults{mixOutputs: true}, []string{"output stays apart between containers"}},
		{"standard input never ends", faults{stdinStays: true}, []string{"standard input is empty"}},
		{"an older output file keeps its content", faults{appendsToFiles: true}, []string{"standard streams in files"}},
		{"tail gives a line more", faults{tailOffByOne: true}, []string{"logs tail"}},
		{"follow ends at once", faults{followEndsEarly: true}, []string{"logs follow"}},
		{"an offset is ignored", faults{offsetIgnored: true}, []string{"logs from an offset"}},
		{"since is ignored", faults{sinceIgnored: true}, []string{"logs since a time"}},
		{"logs go with the container", faults{logsRemoved: true}, []string{"logs outlive the container"}},
		{"exit codes are shifted", faults{shiftCode: true}, []string{"exit codes"}},
		{"a signal looks like an exit", faults{signalIsExit: true}, []string{"end by signal"}},
		{"an exit looks like a signal", faults{codeIsSignal: true}, []string{"exit codes"}},
		{"the exit is forgotten", faults{forgetExit: true}, []string{"wait again", "many waits"}},
		{"times are wrong", faults{wrongTimes: true}, []string{"times of the exit"}},
		{"a command that cannot run is an exit", faults{neverStartedIsExit: true}, []string{"command not there", "command cannot be run"}},
		{"a command that cannot run is an error", faults{neverStartedIsError: true}, []string{"command not there", "command cannot be run"}},
		{"a stop looks like a signal", faults{reasonOfStop: true}, []string{"stop without grace", "stop kills after the grace", "stop"}},
		{"a timeout looks like a signal", faults{reasonOfTimeout: true}, []string{"timeout", "timeout with grace"}},
		{"the end of a wait kills", faults{waitKills: true}, []string{"wait ends with its context"}},
		{"a wait does not end with its context", faults{waitHangs: true}, []string{"wait ends with its context"}},
		{"start is not idempotent", faults{startTwice: true}, []string{"start is idempotent"}},
		{"start takes another spec", faults{acceptOtherSpec: true}, []string{"start with another spec conflicts"}},
		{"open takes another spec", faults{acceptOtherSandbox: true}, []string{"open is idempotent"}},
		{"open makes the sandbox afresh", faults{openAfresh: true}, []string{"open is idempotent"}},
		{"anything is accepted", faults{acceptAll: true}, []string{"what makes no sense is refused"}},
		{"attach finds anything", faults{attachToAnything: true}, []string{"what is not there", "close"}},
		{"stop of an ended container fails", faults{stopFailsOnEnded: true}, []string{"stop of an ended container"}},
		{"stop returns before the end", faults{stopReturnsEarly: true}, []string{"stop kills after the grace", "stop without grace"}},
		{"stop kills at once", faults{stopKills: true}, []string{"stop", "stop signal", "timeout with grace"}},
		{"stop always sends TERM", faults{stopIgnoresSignal: true}, []string{"stop signal"}},
		{"the grace is short", faults{graceIsShort: true}, []string{"stop kills after the grace"}},
		{"remove fails for what is gone", faults{removeFailsTwice: true}, []string{"remove"}},
		{"remove leaves an entry", faults{removeKeepsEntry: true}, []string{"remove", "list"}},
		{"remove leaves the processes", faults{removeLeavesRunning: true}, []string{"remove of a running container"}},
		{"close leaves an entry", faults{closeKeepsEntry: true}, []string{"close", "list"}},
		{"close fails for what is gone", faults{closeFailsTwice: true}, []string{"close"}},
		{"close leaves scratch paths", faults{closeKeepsScratch: true}, []string{"close"}},
		{"list forgets labels", faults{listForgetsLabels: true}, []string{"list"}},
		{"list does not see the end", faults{statusStale: true}, []string{"list"}},
		{"list has a sandbox that is gone", faults{leaksSandbox: true}, []string{"list", "close"}},
		{"one container runs at a time", faults{oneAtATime: true}, []string{"two at once"}},
		{"the environment is sorted", faults{envSorted: true}, []string{"environment"}},
		{"the host's environment leaks", faults{envLeaks: true}, []string{"environment"}},
		{"the working directory is ignored", faults{noWorkdir: true}, []string{"working directory"}},
		{"arguments are split", faults{argsSplit: true}, []string{"arguments"}},
		{"each step has its own volume", faults{volumeNotShared: true}, []string{"steps share volumes"}},
		{"the volume is another directory", faults{otherVolume: true}, []string{"volume from this host"}},
		{"nothing is copied up", faults{noCopyUp: true}, []string{"volume copies up"}},
		{"steps share a root", faults{sharedRoot: true}, []string{"root file system is its own"}},
		{"a wait fails when the container is stopped", faults{waitFailsOnStop: true}, []string{"stop while it is waited for"}},
		{"what a command leaves behind runs on", faults{leavesRunning: true}, []string{"the end of the command is the end"}},
		{"logs of what never started do not end", faults{followOfNoneHangs: true}, []string{"logs of a command that never started"}},
		{"what nobody has read yet is dropped", faults{dropsUnread: true}, []string{"logs wait for their readers"}},
		{"a stop waits for those who read", faults{stopWaitsForReaders: true}, []string{"logs of a flood"}},
		{"a closed sandbox starts containers", faults{startsAfterClose: true}, []string{"close during starts"}},
		{"a start that was given up is forgotten", faults{startForgets: true}, []string{"start with a context that ends"}},
		{"lent devices are not there", faults{grantIgnored: true}, []string{"lent device", "lent devices at once"}},
		{"a sandbox gets all devices", faults{grantsOfAll: true}, []string{"lent devices at once"}},
		{"a device that has changed is given", faults{grantUnchecked: true}, []string{"lent device that has changed"}},
		{"grants are not looked at", faults{grantsOfNonsense: true}, []string{"grants that make no sense"}},
		{"the environment asks for devices", faults{envAsks: true}, []string{"environment asks for no devices", "environment"}},
		{"the environment of grants is ignored", faults{grantEnvIgnored: true}, []string{"environment of lent devices"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			env := newFake(t, f.faults)
			for _, name := range f.caught {
				c, ok := checks[name]
				if !ok || lacking(env, c) {
					t.Fatalf("there is no check %q for the fake", name)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if err := c.Run(ctx, env); err == nil {
					t.Errorf("the check %q did not catch it", name)
				} else {
					t.Logf("%s: %v", name, err)
				}
			}
		})
	}
}

// TestRun: a skip of what does not exist is seen, and a check that fails fails its test.
func TestRun(t *testing.T) {
	env := newFake(t, faults{})
	skips := map[string]string{}
	for _, c := range enginetest.Checks() {
		if c.Name != "exit codes" {
			skips[c.Name] = "not looked at here"
		}
	}
	enginetest.Run(t, env, skips)
	if _, err := env.Engine.Attach(t.Context(), "none"); err == nil {
		t.Error(berth.ErrNotFound)
	}
}
