package runner

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

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

func (plainStager) Out(_ context.Context, out berth.Output, from []Tree) ([]berth.OutputFile, error) {
	var best *Tree
	for i, t := range from {
		if within(out.Path, t.Path) && (best == nil || len(t.Path) >= len(best.Path)) {
			best = &from[i]
		}
	}
	if best == nil || best.Root == nil {
		return nil, fmt.Errorf("output %s: %w", out.Path, berth.ErrNotFound)
	}
	f, err := best.Root.Open(strings.TrimPrefix(strings.TrimPrefix(out.Path, best.Path), "/"))
	if err != nil {
		return nil, fmt.Errorf("output %s: %w", out.Path, kind(err))
	}
	defer f.Close()
	w, err := os.CreateTemp(filepath.Dir(out.URL), ".out-")
	if err != nil {
		return nil, fmt.Errorf("output %s: %w", out.Path, kind(err))
	}
	n, err := io.Copy(w, f)
	if err != nil {
		return nil, err
	}
	w.Close()
	return []berth.OutputFile{{URL: out.URL, Path: out.Path, Size: n}}, os.Rename(w.Name(), out.URL)
}
