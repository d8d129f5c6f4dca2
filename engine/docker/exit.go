package docker

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// Shells' codes for a command that cannot be run and one that is not there.
const (
	cannotRun = 126
	notThere  = 127
)

// exitOf says why a container ended, from the daemon's state and what berth recorded before.
//
// A death by signal cannot be told from an exit with 128+n: the daemon's init answers so for its child, and
// containerd so for pid 1. Only for a signal that berth sent is it known; else the exit is Exited with that
// code, and Detail says what it may mean.
//
// says is what may be the word of the daemon's init; past is what the daemon remembers of the container, and nil where it is not
// asked.
func (l *life) exitOf(r *record, s *container.State, says []byte, past func() history) berth.Exit {
	e := berth.Exit{Reason: berth.Exited, Code: s.ExitCode, Started: l.e.parseTime(s.StartedAt), Ended: l.e.parseTime(s.FinishedAt), Runtime: r.Runtime, Unverified: r.Unverified}
	if !e.Ended.IsZero() && e.Ended.Before(e.Started) { // Podman takes its answer to the start for the beginning
		e.Started = e.Ended
	}
	if s.Status == container.StateCreated {
		e.Reason, e.Code, e.Detail = berth.NeverStarted, startCode(s.Error), startWords(argv(&r.Spec), s.Error)
		return e
	}
	if word, code := initSays(r, s.ExitCode, says); word != "" {
		e.Reason, e.Code, e.Detail = berth.NeverStarted, code, word
		return e
	}
	e.Usage = readUsage(cgroupFiles{root: cgroupRoot, path: r.Cgroup})
	if r.Cgroup == "" {
		l.mu.Lock()
		e.Usage = l.used
		l.mu.Unlock()
	}
	// It ended while the daemon was away, which has no more to say of it: it makes up a code.
	unseen := e.Ended.IsZero()
	if unseen {
		e.Code = -1
	}
	var why intent
	if err := readJSON(filepath.Join(l.dir, intentFile), &why); err == nil && (unseen || !e.Ended.Before(why.At)) {
		e.Reason, e.Detail = why.Reason, why.Detail
		if n := e.Code - 128; n == 9 || n == signalNumber(l.stopSignal()) {
			e.Signal = n
		}
		return e
	}
	full := ""
	if e.Code != 0 {
		full = l.diskFull()
	} else {
		full = l.diskPassed()
	}
	killed := s.OOMKilled || l.outOfMemory(r, e.Code == 0) || l.toldLate(r, e.Code, past)
	reached := "the daemon's host was out of memory"
	if r.Limits.Memory > 0 {
		reached = fmt.Sprintf("the memory limit of %s was reached", berth.SizeInWords(r.Limits.Memory))
		if killed && r.Cgroup == "" { // which no look may have seen
			e.Usage.PeakMemory = new(r.Limits.Memory)
		}
	}
	switch {
	case killed && e.Code != 0:
		e.Reason, e.Detail = berth.OutOfMemory, reached
	case killed:
		e.Detail = reached + "; the kernel killed some of its processes"
	case full != "":
		e.Reason, e.Detail = berth.OutOfDisk, full
	case unseen:
		e.Reason, e.Detail = berth.Lost, "the daemon was away when the container ended, and does not know how"
	case e.Code > 128 && e.Code <= 128+64:
		e.Detail = fmt.Sprintf("exit code %d, or killed by signal %d: the daemon does not tell them apart", e.Code, e.Code-128)
		if e.Code == 128+int(unix.SIGKILL) && l.onlyTold(r) && !e.Ended.After(e.Started.Add(blindFor)) {
			e.Detail += fmt.Sprintf(", and may not have seen that the memory limit of %s was reached so soon", berth.SizeInWords(r.Limits.Memory))
		}
	}
	// Its cgroup, which alone counts refusals, is gone.
	if most := r.Limits.PIDs; e.Reason == berth.Exited && e.Code != 0 && most > 0 && e.Usage.PeakPIDs != nil && *e.Usage.PeakPIDs >= most {
		e.Detail = strings.TrimPrefix(e.Detail+fmt.Sprintf("; the limit of %d processes and threads was reached", most), "; ")
	}
	return e
}

// startCode is the exit code of a command that the daemon could not start; 0 where the error is another.
func startCode(msg string) int {
	switch {
	case strings.Contains(msg, "executable file not found"), strings.Contains(msg, "attempted to invoke a command that was not found"):
		return notThere
	case strings.Contains(msg, "exec: ") && strings.Contains(msg, "no such file or directory"):
		return notThere
	case strings.Contains(msg, "exec: ") && (strings.Contains(msg, "permission denied") || strings.Contains(msg, "not a directory") || strings.Contains(msg, "is a directory") || strings.Contains(msg, symlinkLoop)),
		crunCannotStart.MatchString(msg),
		strings.Contains(msg, "exec format error"):
		return cannotRun
	}
	return 0
}

// startWords says of a command that the daemon could not start what the embedded engine would. What is wrong with anything
// else is left in the daemon's words.
func startWords(argv []string, msg string) string {
	if dir := noWorkingDir.FindStringSubmatch(msg); dir != nil {
		return "working directory " + dir[1] + ": " + strings.ToLower(dir[2])
	}
	code, why := startCode(msg), ""
	if code == notThere {
		why = "no such file or directory"
	} else if found := cannotStart.FindString(msg); code == cannotRun {
		why = strings.ToLower(found)
	}
	switch {
	case why == "" || len(argv) == 0:
		return msg
	case why == "operation not permitted", why == "is a directory": // crun's of a directory, and runc's since 1.2; the kernel's words are
		why = "permission denied"
	}
	return "exec " + argv[0] + ": " + why
}

var (
	// noWorkingDir is what runc and crun say of a working directory that cannot be entered.
	noWorkingDir = regexp.MustCompile("chdir (?:to cwd \\(\"|`)([^\"`]*)(?:\"\\) set in config.json failed|`): ([A-Za-z ]+)")
	cannotStart  = regexp.MustCompile(`(?i)` + commandsFault)
	// What else crun may say of opening the command, as that memory or files ran out, is the host's fault.
	crunCannotStart = regexp.MustCompile(`(?i)open executable: (?:` + commandsFault + `)`)
)

const (
	symlinkLoop   = "too many levels of symbolic links"
	commandsFault = `not a directory|is a directory|permission denied|operation not permitted|exec format error|file name too long|` + symlinkLoop
)

// initSays reads what the daemon's init (Docker's tini, Podman's catatonit) wrote if it could not execute the command, and the code that this amounts
// to. Nothing else tells that from a command which ends with the same code.
func initSays(r *record, code int, says []byte) (string, int) {
	args := argv(&r.Spec)
	if len(args) == 0 || r.Spec.NoInit || code != 1 && code != cannotRun && code != notThere { // none: its record is gone
		return "", 0
	}
	_, msg, ok := strings.Cut(strings.TrimSpace(string(says)), "): failed to exec pid1: ") // Podman's
	if !ok || !bytes.HasPrefix(says, []byte(podmanInitFatal)) {
		_, msg, ok = strings.Cut(strings.TrimSpace(string(says)), ")] exec "+args[0]+" failed: ")
		ok = ok && bytes.HasPrefix(says, []byte(initFatal))
	}
	switch {
	case !ok || strings.Contains(msg, "\n"):
		return "", 0
	case strings.Contains(msg, "No such file"):
		code = notThere
	default:
		code = cannotRun
	}
	return "exec " + args[0] + ": " + strings.ToLower(msg[:1]) + msg[1:], code
}
