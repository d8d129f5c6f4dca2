package docker

import (
	"cmp"
	"fmt"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// Locate finds out which daemon is meant: host if it is set, else DOCKER_HOST of the environment, else Docker's
// default. ErrInvalid where that makes no sense.
func Locate(host string, getenv func(string) string) (string, error) {
	host = cmp.Or(host, getenv("DOCKER_HOST"), client.DefaultDockerHost)
	if _, err := client.ParseHostURL(host); err != nil {
		return "", fmt.Errorf("docker host %q: %w: %w", host, berth.ErrInvalid, err)
	}
	return host, nil
}
