// Command dump writes the image of berth's init for the architecture that it was built for.
package main

import (
	"os"

	"github.com/berth-project/berth/engine/oci/initbin"
)

func main() {
	if _, err := os.Stdout.Write(initbin.ELF()); err != nil {
		os.Exit(1)
	}
}
