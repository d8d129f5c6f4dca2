// Package runner drives a task through its life: from its submission to its one recorded end, over crashes of
// the process that drives it. It runs no container (an engine does), decides no order among tasks (the
// ledger's line does, or package queue), and keeps nothing in memory that its records do not hold.
//
// # One task's life
//
// Run (in the foreground) or Submit checks the task, asks the ledger whether this machine could ever hold it,
// takes the lock of the task's directory, and has the store record it: QUEUED. From there drive, in drive.go,
// takes it to its end:
//
//   - admit waits until the ledger lends what the task asks for. The lease is recorded: INITIALIZING.
//   - open gets all images and inputs at once, records the sandbox's spec, and opens it. Beside the declared
//     volumes it has one for each directory in which outputs are expected (layout.go).
//   - runSteps, for each step: its spec is recorded, then it is started: RUNNING. Its exit is recorded before
//     its container is removed. The first failure ends the row, unless the step ignores errors.
//   - collect brings the outputs out, after failures too.
//   - decide says how the task ended; that is recorded as its outcome.
//   - finish closes the sandbox and removes the working directory; then the final state is recorded, once.
//     So CANCELED, like every end, means that nothing of the task is left. The lease ends with the guard in
//     drive.
//
// # Over crashes
//
// Each effect comes after its recorded intent, and each record is enough to find the effect again, so a
// process that takes over (Resume, Drive) enters the same functions, which skip what is recorded. The lock of
// the task's directory is an flock: it ends with the process, and whoever gets it knows that no driver is
// alive. Points lists the steps at which tests kill a driver.
//
// A task in the foreground has its sandbox bound to its process; if that is killed, Reconcile records what
// became of it. A detached task is parked while its step runs: no process drives it, and its lease is left to
// the engine's monitor.
//
// # Ends
//
// Cancel records the wish and rings the driver's bell, a FIFO in the task's directory; with no driver alive it
// drives the task to its end itself. The cause of a context's end says what the end means: ErrCanceled and
// ErrDeadline end the task, and anything else only this process: containers go on for the next.
package runner
