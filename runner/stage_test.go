package runner

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-project/berth"
)

// plainStager stages files of this host, and no patterns.
type plainStager struct{}

func (plainStager) In(_ context.Context, in berth.Input, dir string) (Staged, error) {
	if in.Content != nil {
		to := filepath.Join(dir, "content")
		return Staged{Source: to, Type: berth.File}, os.WriteFile(to, []byte(*in.Content), 0o600)
	}
	if !exists(in.URL) {
		return Staged{}, fmt.Errorf("cannot mount input %s as it does not exist: %w", in.URL, berth.ErrNotFound)
	}
	return Staged{Source: in.URL, Type: berth.File}, nil
}
