package runner

import (
	"fmt"
	"strings"

	"github.com/berth-project/berth"
)

// ExitCode is the exit code of `berth run` for a task that ended so: the command's own where the command
// ended it, 128+n where signal n did, and berth's otherwise.
//
//	COMPLETE                                     0
//	EXECUTOR_ERROR   Exited, NeverStarted        the command's own; 126 and 127
//	                 Signaled                    128+n
//	                 OutOfMemory                 137
//	                 OutOfDisk                   125
//	                 TimedOut                    124
//	CANCELED                                     130
//	SYSTEM_ERROR     Preempted, Lost, all else   125
func ExitCode(r berth.Result) int {
	switch r.State {
	case berth.Complete:
		return 0
	case berth.Canceled:
		return 130
	case berth.ExecutorError:
		return reasonCode(r)
	case berth.SystemError, berth.Queued, berth.Initializing, berth.Running, berth.Canceling:
	}
	return 125
}

func reasonCode(r berth.Result) int {
	switch r.Reason {
	case berth.Exited, berth.NeverStarted:
		if r.ExitCode > 0 {
			return r.ExitCode
		}
	case berth.Signaled:
		if r.Signal > 0 {
			return 128 + r.Signal
		}
	case berth.OutOfMemory:
		return 137
	case berth.TimedOut:
		return 124
	case berth.OutOfDisk, berth.Stopped, berth.Preempted, berth.Lost:
	}
	return 125
}

// stateOf is the state that a task ends in because a step ended so. Stopped is the end of a task only
// where somebody asked for it; the driver knows.
func stateOf(r berth.Reason) berth.State {
	switch r {
	case berth.Stopped:
		return berth.Canceled
	case berth.Lost, berth.Preempted:
		return berth.SystemError
	case berth.Exited, berth.Signaled, berth.OutOfMemory, berth.OutOfDisk, berth.TimedOut, berth.NeverStarted:
	}
	return berth.ExecutorError
}

// canIgnore reports whether a task that ignores the errors of a step goes on after this one.
func canIgnore(r berth.Reason) bool {
	switch r {
	case berth.Exited, berth.Signaled, berth.OutOfMemory, berth.OutOfDisk, berth.NeverStarted:
		return true
	case berth.TimedOut, berth.Stopped, berth.Preempted, berth.Lost:
	}
	return false
}

// describe says in one line how a step ended.
func describe(e berth.Exit) string {
	var s string
	switch e.Reason {
	case berth.Exited:
		s = fmt.Sprintf("exited with %d", e.Code)
	case berth.Signaled:
		s = fmt.Sprintf("ended by signal %d", e.Signal)
	case berth.OutOfMemory:
		s = "out of memory"
	case berth.OutOfDisk:
		s = "out of disk"
	case berth.TimedOut:
		s = "time limit was reached"
	case berth.Stopped:
		s = "canceled"
	case berth.Preempted:
		s = "preempted"
	case berth.Lost:
		s = "lost"
	case berth.NeverStarted:
		s = "could not be started"
	default:
		s = string(e.Reason)
	}
	switch {
	case e.Detail == "":
		return s
	case e.Reason == berth.TimedOut && strings.HasPrefix(e.Detail, "the time limit"):
		return e.Detail
	case e.Reason == berth.Signaled && strings.HasPrefix(e.Detail, fmt.Sprintf("signal %d ", e.Signal)):
		return "ended by " + e.Detail
	}
	return s + ": " + e.Detail
}
