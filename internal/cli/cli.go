// Package cli is berth's command line: its commands, streams, exit codes and configuration. It is the only
// package that knows all others, and wires them by hand (see wire.go). A command is one file: an options
// struct, its flags, and a function that runs it. Results go to standard output, all else to standard error.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/nvidia/nvml"
	"github.com/berth-project/berth/internal/cli/userns"
	"github.com/berth-project/berth/tes/document"
)

// app is what commands have of their process.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      []string // "K=V"
	dir      string   // the working directory
	global   globalOptions
	rootless bool // root of a user namespace that berth has made
	// noNamespace says why there is no user namespace, to a command that can do without.
	noNamespace string
	// uniqueNames: tasks are submitted by names that their user gives, which no other of his that runs may have.
	uniqueNames bool
	// called: the command line was read, and the command has begun to do what it says.
	called bool
	// retrying is told why inputs are fetched again; nil where nobody is.
	retrying func(text string)
	// patience is how long a GPU's driver may take to answer; 0 is device.AnswerTimeout.
	patience time.Duration
	away     func(since time.Duration, why error) // is told of a daemon that does not answer; nil: nobody is
}

// globalOptions are the flags that every command has.
type globalOptions struct {
	dataDir string
	config  string
	engine  string
	daemon  string
	// hideFigures: what the machine has is not told in messages.
	hideFigures bool
	gpuRoot     string
	brokenHook  string
	// Of --engine docker; 0 is the engine's own.
	watchdog, outputWait time.Duration
	debug                bool
}

// Main runs berth with the arguments, streams and environment of this process, and returns its exit code.
func Main() int {
	if exit, is := ociMain(os.Args); is {
		return exit
	}
	userns.HelperMain()
	hiddenMains()
	rootless := userns.Entered()
	signal.Ignore(syscall.SIGPIPE) // writes answer EPIPE
	dir, err := os.Getwd()
	if err != nil {
		dir = "" // relative paths are refused where they are met
	}
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Environ(), dir: dir, rootless: rootless}
	return a.run(context.Background(), os.Args[1:])
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	a.dropOldResult(cmd, args)
	if end, ok := errors.AsType[exitError](err); ok {
		return int(end)
	}
	if errors.Is(err, syscall.EPIPE) && cmd.Annotations[ownExit] == "" {
		return exitPipe // as a command that SIGPIPE ends: nobody reads what it prints
	}
	err = withoutLibrary(a.fullDisk(err), nvml.Built)
	for _, line := range errorLines(err) {
		_, _ = fmt.Fprintf(a.err, "berth: %s\n", line)
	}
	return exitCode(cmd, err)
}

// fullDisk says what to do where the disk of the data directory is full.
func (a *app) fullDisk(err error) error {
	dir, bad := a.dataDir()
	if bad != nil || !errors.Is(err, berth.ErrExhausted) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) && strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "berth.db: exhausted: the disk is full") {
		text := err.Error()
		for _, told := range []string{" (`berth image prune` removes what is not in use)", ""} { // the same, in the words of a library
			text = strings.ReplaceAll(text, "; free some of it"+told+", or choose another data directory", "")
		}
		return &quietError{fmt.Sprintf("%s; make room in %s (berth rm --all, berth image prune), or give another --data-dir", text, dir), err}
	}
	return err
}

// withoutLibrary says why not all is known of NVIDIA's GPUs to a berth that cannot ask their library.
func withoutLibrary(err error, built bool) error {
	if built || !errors.Is(err, berth.ErrExhausted) {
		return err
	}
	text := err.Error()
	if !strings.Contains(text, "is lent to who names") && !strings.Contains(text, "are lent to who names") && !strings.Contains(text, "no shares of it can be counted") {
		return err
	}
	return fmt.Errorf("%w; of NVIDIA's, a berth that was built with cgo knows it", err)
}

// maxFaults bounds how many faults of a document are told.
const maxFaults = 20

// errorLines are the lines that tell of an error: one, but for a document with several faults.
func errorLines(err error) []string {
	faults, ok := errors.AsType[document.Errors](err)
	if !ok {
		return []string{oneLine(err)}
	}
	var lines []string
	for i, f := range faults {
		if i == maxFaults {
			lines = append(lines, fmt.Sprintf("%s: and %d faults more", f.Name, len(faults)-i))
			break
		}
		lines = append(lines, oneLine(f))
	}
	return lines
}

// oneLine keeps errors of others, which may have several lines, to the one line that users are promised.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	for i, l := range lines {
		lines[i] = strings.TrimSpace(l)
	}
	return strings.Join(lines, "; ")
}

// lookupEnv finds an environment variable.
func (a *app) lookupEnv(name string) (string, bool) {
	for _, e := range slices.Backward(a.env) {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

func (a *app) getenv(name string) string {
	v, _ := a.lookupEnv(name)
	return v
}

func (a *app) root() *cobra.Command {
	version := false
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run container tasks on this machine, with no daemon",
		Long: `berth runs container tasks on this machine, with no daemon: limits that hold, ends that are named,
outputs that are yours, and nothing left behind.`,
		Args:              noArgs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return a.tellVersion("table")
			}
			return cmd.Help()
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.configure(cmd); err != nil {
				return err
			}
			if !slices.Contains(engines(), a.global.engine) {
				return a.noEngine()
			}
			return a.enter(cmd)
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.Flags().BoolVar(&version, "version", false, "tell the version of berth")
	flags := root.PersistentFlags()
	flags.StringVar(&a.global.dataDir, "data-dir", "", "`DIR` of everything that berth keeps (default /var/lib/berth for root, else $XDG_DATA_HOME/berth)")
	flags.StringVar(&a.global.config, "config", "", "configuration `FILE` to read in place of the user's")
	flags.StringVar(&a.global.engine, "engine", engineOCI, "what runs the containers: `oci|docker`, this host or a Docker or Podman service")
	flags.StringVar(&a.global.daemon, "docker-host", "", "`ADDRESS` of the service of --engine docker, as in unix:///run/docker.sock, tcp://host:2376 or ssh://user@host (default $DOCKER_HOST, else the Docker context's)")
	flags.Var(waitValue{&a.global.watchdog}, "docker-watchdog", "how often --engine docker looks at a running container, and how long a look may take; after 5 failures in a row its end is Lost (default 2m)")
	flags.Var(waitValue{&a.global.outputWait}, "docker-output-wait", "how long the rest of a container's output may take with --engine docker, once it has ended (default 5m)")
	flags.StringVar(&a.global.gpuRoot, "gpu-root", "/", "root `DIR` of the host whose GPUs are lent, for tests")
	flags.StringVar(&a.global.brokenHook, "broken-hook", "", "`PROGRAM` to run once where nothing can run on the daemon's host: tasks then wait until it is mended (see berth system mended)")
	flags.BoolVar(&a.global.hideFigures, "hide-figures", false, "do not tell in messages how much this machine has")
	flags.BoolVar(&a.global.debug, "debug", false, "log what berth does to standard error")
	root.AddGroup(&cobra.Group{ID: "tasks", Title: "Tasks:"}, &cobra.Group{ID: "host", Title: "Images, GPUs and this host:"})
	group := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("tasks", a.runCommand(), a.psCommand(), a.logsCommand(), a.waitCommand(), a.execCommand(), a.inspectCommand(), a.stopCommand(), a.rmCommand())
	group("host", a.imageCommand(), a.gpuCommand(), a.ociRuntimeCommand(), a.ociHookCommand(), a.cdiCommand(), a.infoCommand(), a.systemCommand(), a.versionCommand(), a.completionCommand())
	root.AddCommand(a.workerCommand(), a.docsCommand())
	root.SetHelpCommand(a.helpCommand())
	root.InitDefaultHelpCmd()
	everywhere(root, func(c *cobra.Command) {
		c.DisableFlagsInUseLine = true // the lines say it themselves
		c.InitDefaultHelpFlag()
		c.Flags().Lookup("help").Usage = "tell about this command"
	})
	return root
}

// everywhere does something with a command and all below it.
func everywhere(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		everywhere(sub, do)
	}
}

// noArgs refuses arguments; of a command with subcommands, it names the nearest.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usageError(cmd, "it takes no arguments, and was given %q", args[0])
	}
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	if hint := commandHints[args[0]]; hint != "" && !cmd.HasParent() {
		return usageError(cmd, "there is no command %q: %s", args[0], hint)
	}
	if i := slices.Index(names, "run"); i > 0 {
		names[0], names[i] = names[i], names[0] // of two that are as near, the one that removes nothing
	}
	near := document.DidYouMean(args[0], names)
	if near == "" {
		near = fmt.Sprintf("; %s --help lists them", cmd.CommandPath())
	}
	return usageError(cmd, "there is no command %q%s", args[0], near)
}

// argCount accepts from least to most arguments; most -1 is any number.
func argCount(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usageError(cmd, "an argument is missing: %s", cmd.UseLine())
		case most >= 0 && len(args) > most:
			return usageError(cmd, "%q is an argument too many: %s", args[most], cmd.UseLine())
		}
		return nil
	}
}

// usageError is a fault in how berth was called.
func usageError(cmd *cobra.Command, format string, args ...any) error {
	name := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), "berth"), " ")
	if name != "" {
		name += ": "
	}
	return invalid("%s%s", name, fmt.Errorf(format, args...))
}

// quiet wraps an error kind without its text: faults of usage speak for themselves.
type quietError struct {
	text string
	kind error
}

func (e *quietError) Error() string { return e.text }
func (e *quietError) Unwrap() error { return e.kind }

func invalid(format string, args ...any) error {
	return &quietError{fmt.Sprintf(format, args...), berth.ErrInvalid}
}

func unsupported(format string, args ...any) error {
	return &quietError{fmt.Sprintf(format, args...), berth.ErrUnsupported}
}

// commandHints say what to do in place of commands that users know from elsewhere.
var commandHints = map[string]string{
	"pull":    "write berth image pull",
	"load":    "write berth image load",
	"import":  "write berth image import",
	"images":  "write berth image ls",
	"rmi":     "write berth image rm",
	"build":   "berth builds no images; berth image load and berth image import take those of other tools",
	"create":  "write berth run --detach",
	"start":   "write berth run",
	"restart": "a task runs once; write berth run",
	"attach":  "write berth logs -f, or berth exec",
	"kill":    "write berth stop --now",
	"cancel":  "write berth stop",
	"submit":  "write berth run --detach",
	"ls":      "write berth ps",
	"list":    "write berth ps",
	"events":  "write berth ps --watch",
	"top":     "write berth inspect, which tells what a running task uses",
	"stats":   "write berth inspect, which tells what a running task uses",
	"prune":   "write berth rm --all for ended tasks, or berth image prune",
	"cleanup": "write berth system cleanup",
}

// hints say what to do in place of flags that users know from elsewhere.
var hints = map[string]string{
	"--rm":         "berth always removes its containers; leave it out",
	"--privileged": "berth has no such mode; see --cap-add and --device",
	"-v":           "write --mount HOST:CONTAINER, or --volume CONTAINER for scratch",
	"-m":           "write --memory",
	"-h":           "write --hostname",
	"-u":           "write --user",
	"-d":           "write --detach",
}

// flagError names the nearest flag beside an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usageError(cmd, "%w", valueError("--"+bad.GetFlag().Name, bad.GetValue(), bad.Unwrap()))
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		kind, _ := pflag.UnquoteUsage(missing.GetFlag())
		return usageError(cmd, "--%s has no value: write --%s %s", missing.GetFlag().Name, missing.GetFlag().Name, kind)
	}
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return usageError(cmd, "%v", err)
	}
	name := "--" + unknown.GetSpecifiedName()
	if unknown.GetSpecifiedShortnames() != "" {
		name = "-" + unknown.GetSpecifiedName()[:1]
	}
	if hint := hints[name]; hint != "" {
		return usageError(cmd, "there is no flag %s: %s", name, hint)
	}
	return usageError(cmd, "there is no flag %s%s", name, document.DidYouMean(name, flagNames(cmd)))
}
