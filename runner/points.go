package runner

// Points are the steps of a task's life at which Hooks.At is called, in the order in which a detached task
// meets them that is parked, continued, and canceled at its end. A berth that is killed at any of them
// leaves a task that Resume brings to its one true end.
func Points() []string {
	return []string{
		"submitted",     // recorded, QUEUED
		"admit",         // nothing is lent yet
		"admitted",      // lent and recorded, INITIALIZING
		"prepared",      // images and inputs are there
		"opening",       // they and the sandbox's spec are recorded
		"open",          // the sandbox is there
		"step starting", // the step's spec is recorded
		"step start",    // the container is there
		"step started",  // recorded, RUNNING
		"parking",       // about to leave the task to its containers
		"parked",        // the lease is the monitor's
		"cancel",        // an end is asked for, and about to be recorded
		"step ended",    // the exit is known
		"step recorded", // and recorded
		"step saved",    // what lay in the container's root is copied
		"step removed",  // the container is gone
		"collecting",    // no output is collected yet
		"output",        // one is about to be written beside its place
		"collected",     // all are
		"outcome",       // recorded
		"closed",        // the sandbox is gone
		"cleaned",       // the working directory is gone
		"final",         // recorded
	}
}

func (d *drive) at(point string) {
	if d.hooks.At != nil {
		d.hooks.At(point)
	}
}
