// Command berth-cdi-hook runs the OCI hooks of CDI specs in containers with NVIDIA GPUs.
package main

import (
	"os"

	"github.com/berth-project/berth/device/cdi/hook"
)

func main() { os.Exit(hook.Main(os.Args[1:], os.Stdin, os.Stderr)) }
