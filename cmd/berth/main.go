// Command berth runs container tasks on this machine, with no daemon.
package main

import (
	"os"

	"github.com/berth-project/berth/internal/cli"
)

func main() { os.Exit(cli.Main()) }
