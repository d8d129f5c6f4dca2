package berth

import "errors"

// The kinds of error. Every error that leaves a package of berth wraps at most one of them with %w; one
// table per outer surface (exit codes, HTTP codes, task states) turns kinds into answers.
var (
	ErrInvalid     = errors.New("invalid")     // the request makes no sense; no retry will help
	ErrNotFound    = errors.New("not found")   // what the request names is not there
	ErrConflict    = errors.New("conflict")    // what the request names is there already, and differs
	ErrDenied      = errors.New("denied")      // this user, registry or host forbids it
	ErrExhausted   = errors.New("exhausted")   // more than this machine could ever give, or a full disk
	ErrUnavailable = errors.New("unavailable") // a daemon, registry or host did not answer; a retry may help
	ErrUnsupported = errors.New("unsupported") // well formed, but not on this host or engine
)

// The causes with which a context is ended (context.Cause). Whoever ends a context names one.
var (
	ErrCanceled = errors.New("canceled")               // the user wants the task ended
	ErrShutdown = errors.New("shutting down")          // berth ends; its containers go on for the next process
	ErrDeadline = errors.New("time limit was reached") // the task's own time limit
	ErrDetached = errors.New("detached")               // who looks on leaves; the command of an Exec runs on
)
