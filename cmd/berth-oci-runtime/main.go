// Command berth-oci-runtime is berth oci-runtime and berth oci-hook as a program of its own, which starts in a fraction of
// the time: an engine calls its runtime some five times for each container.
package main

import (
	"fmt"
	"os"

	"github.com/berth-project/berth/device/ociruntime"
)

func main() {
	exit, is := ociruntime.Main(os.Args, nil)
	if !is {
		fmt.Fprintf(os.Stderr, "berth: %s is no name of this program; call it berth-oci-runtime or berth-oci-hook, or give it oci-runtime or oci-hook for its first argument\n", os.Args[0])
		exit = 2
	}
	os.Exit(exit)
}
