package hook

import (
	"errors"
	"flag"
	"strings"
)

// applyCUDAMemoryLimits stands in specs of NVIDIA's generator for every GPU, and does something only where the
// container's environment asks for a limit. Setting one takes the driver's own library, which a static program
// cannot load: then the container must not start without its limit.
func applyCUDAMemoryLimits(flags *flag.FlagSet) func(*job) error {
	var ids list
	flags.String("driver-root", "", "where the driver is")
	flags.Var(&ids, "gpu-id", "UUID of a GPU; may be given again")
	return func(j *job) error {
		env, err := j.env()
		if err != nil {
			return err
		}
		for _, v := range env {
			name, _, _ := strings.Cut(v, "=")
			if name == "NVIDIA_GPU_MEMORY_LIMIT" || name == "NVIDIA_GPU_MEMORY_REQUEST" {
				return errors.New("the container's environment has " + v + ", and this program cannot set limits of GPU memory; use nvidia-cdi-hook in this spec, or take the variable away")
			}
		}
		return nil
	}
}
