package grant

import (
	"path/filepath"
	"slices"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device/cdi"
)

// The program of berth's own hooks, and what stands between several for one run of it.
const (
	ownHook = "berth-cdi-hook"
	andThen = "++"
)

// Fold is edits in which berth's own hooks that follow one another are one: to execute a program costs more than all
// that most of them do.
func Fold(e *cdi.Edits) *cdi.Edits {
	e = cdi.Append(nil, e)
	if e == nil {
		return nil
	}
	var hooks []*specs.Hook
	for _, h := range e.Hooks {
		if n := len(hooks); n > 0 && foldable(hooks[n-1], h) {
			hooks[n-1].Args = append(append(hooks[n-1].Args, andThen), h.Args[1:]...)
			continue
		}
		hooks = append(hooks, h)
	}
	e.Hooks = hooks
	return e
}

func foldable(a, b *specs.Hook) bool {
	return a.Path == b.Path && filepath.Base(a.Path) == ownHook && a.HookName == b.HookName && len(a.Args) > 1 && len(b.Args) > 1 &&
		slices.Equal(a.Env, b.Env) && a.Timeout == nil && b.Timeout == nil
}
