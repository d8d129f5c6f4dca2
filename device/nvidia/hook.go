package nvidia

import (
	"fmt"
	"path"
	"slices"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
)

// The hooks of cmd/berth-cdi-hook, which are named as NVIDIA's.
const (
	hookSymlinks   = "create-symlinks"
	hookCompat     = "enable-cuda-compat"
	hookLDCache    = "update-ldcache"
	hookNodes      = "disable-device-node-modification"
	hookProfile    = "update-application-profile"
	hookChmod      = "chmod"
	hookMemory     = "apply-cuda-memory-limits" // NVIDIA's only
	hookAll        = "all"
	stageContainer = "createContainer"
	stageRuntime   = "createRuntime"
)

// Hooks makes the hooks of CDI specs. Disabled and Enabled hold names of hooks, or "all"; a hook that is in both
// is enabled. chmod is disabled unless it is enabled: only an old crun needed it.
type Hooks struct {
	Path     string // of the program, absolute: runtimes search no PATH
	Disabled []string
	Enabled  []string
}

// New returns a hook, or nil if it is disabled or has nothing to do. Hooks are never without an environment:
// runtimes have given those the container's, with its LD_PRELOAD.
func (h Hooks) New(name string, args ...string) (*specs.Hook, error) {
	if !path.IsAbs(h.Path) {
		return nil, fmt.Errorf("CDI hook %q: %w: the path of the program must be absolute", h.Path, berth.ErrInvalid)
	}
	if h.disabled(name) || len(args) == 0 && (name == hookSymlinks || name == hookChmod) {
		return nil, nil //nolint:nilnil // there may be nothing to do
	}
	hook := &specs.Hook{
		HookName: stageContainer,
		Path:     h.Path,
		Args:     []string{path.Base(h.Path)},
		Env:      []string{"NVIDIA_CTK_DEBUG=false"},
	}
	if name == hookMemory {
		hook.HookName = stageRuntime
	}
	if hook.Args[0] == "nvidia-ctk" {
		hook.Args = append(hook.Args, "hook")
	}
	hook.Args = append(hook.Args, name)
	switch name {
	case hookSymlinks:
		hook.Args = append(hook.Args, each("--link", args)...)
	case hookLDCache:
		hook.Args = append(hook.Args, each("--folder", args)...)
	case hookChmod:
		hook.Args = append(hook.Args, "--mode", "755")
		hook.Args = append(hook.Args, each("--path", args)...)
	default:
		hook.Args = append(hook.Args, args...)
	}
	return hook, nil
}

func each(flag string, args []string) []string {
	var flags []string
	for _, a := range args {
		flags = append(flags, flag, a)
	}
	return flags
}

func (h Hooks) disabled(name string) bool {
	if slices.Contains(h.Enabled, name) {
		return false
	}
	return name == hookChmod || slices.Contains(h.Disabled, name) || slices.Contains(h.Disabled, hookAll)
}
