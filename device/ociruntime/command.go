package ociruntime

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"
)

// command is a command line of an OCI runtime, as far as it concerns what stands before the runtime: flags of the
// whole, a command, its flags, and the container's ID.
type command struct {
	args []string // as they came, without berth's own

	config  string // of berth
	example bool   // print an example of that
	root    string // the runtime's state directory, absolute; "" is the runtime's default
	log     string // the file for errors; "" is none
	json    bool   // the form of that file

	name   string // "create"; "" where there is none, as with --version
	bundle string // absolute, of create, run and restore
	spec   string // the name of the bundle's configuration in it
	id     string // the container's
}

// The flags that are berth's. All others are the runtime's.
const (
	flagConfig  = "--berth-config"  // FILE
	flagExample = "--berth-example" // print an example of that
)

// valued are the flags of runc, crun and youki that take the next argument for their value.
var (
	valued = []string{
		"--log", "--log-format", "--log-level", "--root", "-r", "-l", "--criu", "--rootless", "--cgroup-manager", flagConfig,
	}
	valuedOfCommand = []string{
		"--bundle", "-b", "--config", "-f", "--console-socket", "--pid-file", "--preserve-fds", "--image-path", "--work-path",
		"--parent-path", "--manage-cgroups-mode", "--empty-ns", "--status-fd", "--lsm-profile", "--lsm-mount-context", "--features",
	}
)

// commands are those of OCI runtimes, to tell one from the value of a flag that is not known here.
var commands = []string{
	"checkpoint", "create", "delete", "events", "exec", "features", "help", "info", "init", "kill", "list", "mounts", "pause", "ps",
	"restore", "resume", "run", "spec", "start", "state", "stats", "update", "version",
}

// starts reports whether the command makes a container of a bundle.
func (c *command) starts() bool {
	return c.name == "create" || c.name == "run" || c.name == "restore"
}

// parseCommand reads a command line, without the program's name. What it does not understand it leaves to the
// runtime. dir is the working directory.
func parseCommand(args []string, dir string) *command {
	c := &command{spec: "config.json", bundle: dir}
	i := 0
	for ; i < len(args); i++ {
		a := args[i]
		if !isFlag(a) {
			c.name = a
			c.args = append(c.args, a)
			i++
			break
		}
		name, value, has := strings.Cut(a, "=")
		taken := 1
		if !has && name != flagExample && i+1 < len(args) && (slices.Contains(valued, name) || !isFlag(args[i+1]) && !slices.Contains(commands, args[i+1])) {
			value, taken = args[i+1], 2
		}
		c.global(name, value)
		if name != flagConfig && name != flagExample {
			c.args = append(c.args, args[i:i+taken]...)
		}
		i += taken - 1
	}
	switch {
	case c.root == "":
	case filepath.IsAbs(c.root):
		c.root = filepath.Clean(c.root)
	default:
		c.root = filepath.Join(dir, c.root)
	}
	rest := args[i:]
	c.args = append(c.args, rest...)
	c.ofCommand(rest, dir)
	return c
}

func isFlag(s string) bool { return len(s) > 1 && s[0] == '-' }

func (c *command) global(name, value string) {
	switch name {
	case flagConfig:
		c.config = value
	case flagExample:
		c.example = true
	case "--root", "-r":
		c.root = value
	case "--log", "-l":
		c.log = value
	case "--log-format":
		c.json = value == "json"
	}
}

// ofCommand reads the flags and the argument of the command.
func (c *command) ofCommand(args []string, dir string) {
	flags := true
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" && flags {
			flags = false
			continue
		}
		if !flags || !isFlag(a) {
			if c.id == "" {
				c.id = a
			}
			continue
		}
		name, value, has := strings.Cut(a, "=")
		if !has && c.takesValue(name) && i+1 < len(args) {
			i++
			value = args[i]
		}
		switch name {
		case "--bundle", "-b":
			c.bundle = value
		case "--config", "-f":
			if c.starts() && value != "" {
				c.spec = value
			}
		}
	}
	if !filepath.IsAbs(c.bundle) {
		c.bundle = filepath.Join(dir, c.bundle)
	}
}

// takesValue reports whether a flag of the command takes the next argument for its value. Those of delete take none: its
// -f is --force, where that of create is --config.
func (c *command) takesValue(name string) bool {
	return c.name != "delete" && slices.Contains(valuedOfCommand, name)
}

// task is the container's name in the ledger. program is the runtime, which has a state directory of its own where the
// command line names none.
func (c *command) task(program string) string { return taskOf(c.id, cmp.Or(c.root, program)) }

// file is the bundle's configuration.
func (c *command) file() string {
	if filepath.IsAbs(c.spec) {
		return c.spec
	}
	return filepath.Join(c.bundle, c.spec)
}
