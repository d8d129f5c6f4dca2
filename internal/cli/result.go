package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/staging"
)

// taskExit is the exit code of berth run for a task that ended so.
func taskExit(res berth.Result) int { return runner.ExitCode(res) }

// told is a result as programs are told it: with lists where there is nothing, and the exit code of berth run beside
// the command's own.
type told struct {
	berth.Result
	BerthExitCode int `json:"berth_exit_code"`
}

func tell(res berth.Result) told {
	if res.Outputs == nil {
		res.Outputs = []berth.OutputFile{}
	}
	return told{res, taskExit(res)}
}

// checkResultFile refuses, before anything runs, a file that could not be written; of a task that could write at the real
// paths writable.
func (a *app) checkResultFile(command, name string, writable []string) error {
	if name == "" {
		return nil
	}
	path := a.abs(name)
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return invalid("%s: --result: %s is a directory; name a file", command, name)
	}
	there, err := isStream(path, writable)
	if there {
		return nil
	}
	if err == nil {
		path, err = staging.Target(path, writable)
	}
	if err != nil {
		return &quietError{fmt.Sprintf("%s: --result: cannot write %s: %v", command, name, err), berth.ErrConflict}
	}
	dir := filepath.Dir(path)
	switch st, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return invalid("%s: --result: cannot write %s: the directory %s does not exist; make it first", command, name, dir)
	case err == nil && !st.IsDir():
		return invalid("%s: --result: cannot write %s: %s is no directory", command, name, dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return &quietError{fmt.Sprintf("%s: --result: cannot write %s: the directory %s is not writable (%v)", command, name, dir, err), berth.ErrDenied}
	}
	return nil
}

// removeResult removes the result of a run before, and no other file, so that nobody takes it for this one's, if berth is killed or
// refuses. Links, devices and the task document are left alone.
func (a *app) removeResult(command, name, document string) error {
	if name == "" {
		return nil
	}
	path := a.abs(name)
	if !isResult(path) {
		return nil // what else a file holds is its owner's until there is a result to write in its place
	}
	st, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // it is gone
	}
	if doc, err := os.Stat(a.abs(document)); err == nil && os.SameFile(doc, st) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &quietError{fmt.Sprintf("%s: --result: cannot remove the result of a run before: %v", command, err), fileKind(err)}
	}
	return nil
}

// writeResult writes a result to a file, which appears whole or not at all.
func (a *app) writeResult(name string, res berth.Result, writable []string) error {
	data, err := json.MarshalIndent(tell(res), "", "  ")
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if err := a.writeWhole(name, append(data, '\n'), writable); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// verdict is the last line on standard error: how the task ended, where that is no plain exit of its
// command; "" where it is. Of several steps it names the one that failed.
func verdict(res berth.Result) string {
	switch {
	case res.State == berth.ExecutorError && res.Reason == berth.Exited && strings.HasPrefix(res.Detail, "step "):
		return colon("Exited", res.Detail)
	case res.State == berth.Complete, res.State == berth.ExecutorError && res.Reason == berth.Exited:
		return ""
	case res.State == berth.Canceled:
		return colon("Canceled", res.Detail)
	case res.State == berth.SystemError && (res.Reason == "" || res.Reason == berth.Exited) && res.Detail != "":
		return res.Detail
	}
	return colon(string(res.Reason), stepDetail(res)) + causes(res)
}

// asFlags names what berth put beside the task's own files by the flags that asked for it.
func asFlags(text string) string {
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		text = strings.ReplaceAll(text, "input "+streamDir+"/"+name+":", "--"+name+":")
		text = strings.ReplaceAll(text, "output "+streamDir+"/"+name+":", "--"+name+":")
		text = strings.ReplaceAll(text, "file "+streamDir+"/"+name+" of "+name+":", "--"+name+":")
	}
	return text
}

// stepDetail is the detail of the step that ended the task, without the words that its reason says too.
func stepDetail(res berth.Result) string {
	for _, s := range slices.Backward(res.Steps) {
		if s.Exit.Reason != res.Reason || s.Exit.Detail == "" || !strings.HasSuffix(res.Detail, s.Exit.Detail) {
			continue
		}
		if strings.HasPrefix(res.Detail, "step ") {
			return fmt.Sprintf("step %d: %s", s.Index+1, s.Exit.Detail)
		}
		return s.Exit.Detail
	}
	return res.Detail
}

// causes are what usually is behind a command that did not start.
func causes(res berth.Result) string {
	switch {
	case res.Reason != berth.NeverStarted || strings.Contains(res.Detail, "line endings"):
		return ""
	case strings.HasPrefix(res.Detail, "could not be started: exec --: "):
		return "; COMMAND follows IMAGE at once, without --"
	case res.ExitCode == 126 && strings.Contains(strings.ToLower(res.Detail), "exec format error"):
		return "; is it a program for this machine's kind of processor, and if it is a script, does its first line name its interpreter, as in #!/bin/sh?"
	case res.ExitCode == 126:
		return "; is it an executable file, and for this machine's kind of processor?"
	}
	return "; is it in the image, is the interpreter that its first line names, and has the script no Windows line endings?"
}

// colon joins two texts, and leaves out what says nothing new.
func colon(a, b string) string {
	switch {
	case b == "" || strings.EqualFold(a, b):
		return a
	case strings.HasPrefix(strings.ToLower(b), strings.ToLower(a)+":"):
		return b
	}
	return a + ": " + b
}
