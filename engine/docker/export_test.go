package docker

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/berth-project/berth"
)

// LentNVIDIA is a grant with a hook.
func LentNVIDIA(n berth.Node) berth.Grant {
	return lentNVIDIA(n, 0, `{"hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true","update-ldcache"]}]}`)
}

// Born is when the daemon was started.
func Born(e *Engine) time.Time { return e.born() }

// Lend does what a start does about what was lent, on a daemon that reads CDI specs in dirs.
func Lend(s berth.Sandbox, dirs ...string) error {
	_, err := s.(*Sandbox).lend(&hostInfo{cdiDirs: dirs}, &container.Config{}, &container.HostConfig{})
	return err
}

// HaveSpecs has an engine take its daemon for one that reads CDI specs in dirs.
func HaveSpecs(ctx context.Context, e *Engine, dirs ...string) error {
	host, err := e.daemon(ctx)
	if err != nil {
		return err
	}
	reads := *host
	reads.cdiDirs = dirs
	e.mu.Lock()
	defer e.mu.Unlock()
	e.host = &reads
	return nil
}

// RoomOf is what can be written yet to the file system of a directory, by root or by others.
func RoomOf(dir string, root bool) (int64, error) { return roomOf(dir, root) }

// Made is how many containers of Podman's an engine takes for its own, and for there.
func Made(e *Engine) int { return e.made.there() }

// Patient gives an engine's hearing so much time for what happens within moments on a machine that is not busy.
func Patient(e *Engine, patience time.Duration) { e.hearing.patience = patience }

// Hears reports whether an engine hears what its daemon tells.
func Hears(e *Engine) bool {
	e.hearing.mu.Lock()
	defer e.hearing.mu.Unlock()
	return e.hearing.live
}
