package device

import (
	"os/user"
	"slices"
	"strconv"
)

// idlers keep GPUs open as long as the machine runs, and use nothing of them. Those of MPS, -server and -control, hand on what
// programs do that have the GPU open themselves.
var idlers = []string{"nvidia-persiste", "nv-fabricmanage", "nv-hostengine", "nvidia-cuda-mps", "nvidia-smi", "dcgm-exporter", "rocm-smi", "amd-smi"}

// idlerAccounts are those as which packages of NVIDIA's persistence daemon run it, where not as root.
var idlerAccounts = []string{"nvidia-persistenced", "nvpd"}

// idles reports whether a process is one of idlers. Any process can take such a name, so that it counts only of root's
// and of the accounts that are there for nothing else.
func (p Process) idles(lookup func(uid string) (*user.User, error)) bool {
	if !slices.Contains(idlers, p.Command) {
		return false
	}
	if p.UID == 0 {
		return true
	}
	account, err := lookup(strconv.FormatUint(uint64(p.UID), 10))
	return err == nil && slices.Contains(idlerAccounts, account.Username)
}
