package cgroup

import (
	"context"
	"errors"
)

// userSystemd reports whether the user's systemd can be asked for a cgroup.
func (h *Host) userSystemd() bool { return false }

func enterScope(ctx context.Context, name string) (at string, leave func() error, err error) {
	return "", nil, errors.New("none")
}
