package berth

import "slices"

// State is where a task stands, in the words of GA4GH TES 1.1.
type State string

// The states of a task. Complete, ExecutorError, SystemError and Canceled are final.
const (
	Queued        State = "QUEUED"         // recorded; waits until the machine has room
	Initializing  State = "INITIALIZING"   // image and inputs are being prepared
	Running       State = "RUNNING"        // the first step was started
	Canceling     State = "CANCELING"      // an end was asked for; it may still become Complete
	Complete      State = "COMPLETE"       // every step ended as it should, outputs are in place
	ExecutorError State = "EXECUTOR_ERROR" // a step ended otherwise
	SystemError   State = "SYSTEM_ERROR"   // berth, the host, an image, an input or an output is at fault
	Canceled      State = "CANCELED"       // ended on request; nothing of the task is left
)

var next = map[State][]State{
	"":           {Queued},
	Queued:       {Initializing, Canceling, Canceled, SystemError},
	Initializing: {Running, Queued, Canceling, Canceled, ExecutorError, SystemError},
	Running:      {Canceling, Complete, ExecutorError, SystemError, Canceled},
	Canceling:    {Canceled, Complete, ExecutorError, SystemError},
}

// CanBecome reports whether a task in state s may change to state to. Staying is no change.
func (s State) CanBecome(to State) bool {
	return slices.Contains(next[s], to)
}

// Final reports whether nothing more will happen to a task in state s.
func (s State) Final() bool {
	return s == Complete || s == ExecutorError || s == SystemError || s == Canceled
}
