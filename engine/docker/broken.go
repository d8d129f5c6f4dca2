package docker

import "regexp"

// unreachable is what errors say where no daemon takes connections.
var unreachable = regexp.MustCompile(`(?i)cannot connect to the docker daemon|failed to connect to the docker API`)

// unable is what daemons say that can run nothing, whatever it is.
var unable = regexp.MustCompile(`(?is)oci runtime (create failed|error).*mount.* to rootfs.*no such file or directory` +
	`|grpc: the connection is unavailable|connection error: .*containerd\.sock` +
	`|no space left on device`)

// Broken tells the errors of a broken host from those of a task. answered: the daemon has said so itself, so that nothing
// has begun.
func (e *Engine) Broken(err error) (broken, answered bool) {
	if err == nil {
		return false, false
	}
	if unable.MatchString(err.Error()) {
		return true, true
	}
	return unreachable.MatchString(err.Error()), false
}
