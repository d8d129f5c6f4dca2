package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/tes"
	"github.com/berth-project/berth/tes/document"
)

// runOptions are the flags of berth run.
type runOptions struct {
	file                                           string
	env, envFile                                   []string
	workdir, entrypoint                            string
	interactive, tty                               bool
	inputs, outputs, mounts, volumes               []string
	stdin, stdout, stderr                          string
	limits                                         berth.Limits
	shmSize                                        int64
	tmpfs, ulimits                                 []string
	timeout, grace                                 time.Duration
	stopSignal                                     string
	noInit                                         bool
	network                                        string
	fallbacks                                      []string
	addHost, publish                               []string
	overCapacity                                   string
	hostname, user, cgroupParent                   string
	groups                                         []string
	readOnly                                       bool
	capAdd, capDrop, securityOpt, sysctls, devices []string
	name                                           string
	labels                                         []string
	pull, platform, runtime                        string
	insecure                                       bool
	detach, noWait, keep, quiet, dryRun, ephemeral bool
	progress, result, format                       string
	gpus                                           []string
	allowBusy, preflight                           bool
	given, changed                                 func(flag string) bool // given at all; given on the command line
}

func (a *app) runCommand() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run one task, in the foreground unless --detach",
		Long: `Run one task and wait for its end. Its standard output and error are berth's own, and so is its exit
code. Flags end at IMAGE: what follows is the task's.

  berth run [flags] IMAGE [COMMAND [ARG...]]
  berth run [flags] -f TASK.(json|yaml|-)

With -f the task is read from a document (docs/task-format.md). Flags of the command line then replace what
the document says, and append to its lists; settings (docs/cli.md) count where it says nothing. Flags about
a step hold for each of its executors.

HOST:CONTAINER is split at the last colon that a slash follows and that is not part of "://". The long form
src=HOST,dst=CONTAINER takes any name; a value in double quotes may hold commas.

--output brings out a file, a directory or what a pattern matches. A CONTAINER that ends in / is a directory, which is
there for the task to write into, and what is in it goes to HOST. Of any other, only the directory that it lies in is
made, and HOST is its place: HOST/ is that of its name in HOST, and a file whose HOST is a directory goes into it, as
with cp. What is there already stays, but for files of the same names. Of a pattern, HOST is a directory.

GPUS is what docker run --gpus takes, and more: a number, all, an index (device=0), a UUID, a PCI address, a slice
(0:1, MIG-UUID), a CDI name, or fields KEY=VALUE with commas between: vendor, model, memory (the least that will
do), mig (a profile), shared (a share of one GPU, of the given memory), capabilities. The task is lent what it asks
for, and nobody else is, until its end; it waits its turn, or with --no-wait is refused.

Exit codes: the task's own; 128+n where signal n ended it; 124 for the time limit; 137 for the memory limit;
130 canceled; 126 the command cannot be run; 127 it is not there; 125 for all that is berth's own. A task's
own 124, 125 or 137 looks the same: the last line on standard error and --result tell them apart. A task whose
output nobody reads any more, as after berth run ... | head, is canceled, and nothing is said of it.`,
		Example: `  berth run debian:12 cat /etc/os-release
  berth run --cpus 2 --memory 1GiB --input reads.fq:/in/reads.fq --output out/:/work/*.bam IMAGE align /in/reads.fq
  berth run --gpus 2,model=H200 IMAGE train.py
  berth run --gpus shared,memory=8GiB IMAGE infer.py
  berth run -f task.yaml --result result.json`,
		Args:        argCount(0, -1),
		Annotations: map[string]string{ownExit: "yes", asRoot: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.changed = cmd.Flags().Changed
			o.given = func(flag string) bool {
				f := cmd.Flags().Lookup(flag)
				return f.Changed || f.Value.String() != f.DefValue
			}
			return a.runTask(cmd.Context(), o, args)
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (o *runOptions) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.SortFlags = false
	list := func(to *[]string, name, short, kind, usage string) {
		flags.VarP(listValue{to, kind}, name, short, usage)
	}
	flags.StringVarP(&o.file, "file", "f", "", "read the task from this `TASK` document; - is standard input")

	list(&o.fallbacks, "fallback-image", "", "IMAGE", "image that does instead, where IMAGE cannot be had (repeat)")
	list(&o.env, "env", "e", "K=V", "set a variable; K alone takes the host's (repeat)")
	list(&o.envFile, "env-file", "", "FILE", "set the variables in a file, one K=V a line (repeat)")
	flags.StringVarP(&o.workdir, "workdir", "w", "", "working `DIR` in the container (default the image's)")
	flags.StringVar(&o.entrypoint, "entrypoint", "", "run this `PROGRAM` in place of the image's entrypoint; '' runs COMMAND itself")
	flags.BoolVarP(&o.interactive, "interactive", "i", false, "give the task berth's standard input")
	flags.BoolVarP(&o.tty, "tty", "t", false, "give the task a terminal")

	list(&o.inputs, "input", "", "HOST:CONTAINER", "put a file or directory, by path or URL, into the container, read-only (repeat)")
	list(&o.outputs, "output", "", "HOST:CONTAINER", "bring a file, a directory (ending in /) or a pattern out of the container; a HOST/ is a directory to put it into (repeat)")
	list(&o.mounts, "mount", "", "HOST:CONTAINER[:ro]", "mount a path of this host (repeat)")
	list(&o.volumes, "volume", "", "CONTAINER[:SIZE]", "an empty directory, shared by the steps (repeat)")
	flags.StringVar(&o.stdin, "stdin", "", "read standard input from this `FILE`, the host's or of the task's inputs and volumes")
	flags.StringVar(&o.stdout, "stdout", "", "also write standard output, all of it, to this `FILE`, the host's or in the task's volumes")
	flags.StringVar(&o.stderr, "stderr", "", "also write standard error, all of it, to this `FILE`, the host's or in the task's volumes")

	flags.Var(floatValue{&o.limits.CPU}, "cpus", "CPUs that the task may use, as in 2 or 0.5; 0 is no limit")
	flags.Var(sizeValue{&o.limits.Memory}, "memory", "memory that the task may use, as in 512MiB or 4G, with no swap beside it; 0 is no limit")
	flags.Var(sizeValue{&o.limits.Disk}, "disk", "disk that the task may fill: writable layer and volumes together; 0 is no limit")
	flags.Var(intValue{&o.limits.PIDs, -1}, "pids", "processes and threads that the task may have; 0 is the default, -1 is no limit (default 4096)")
	flags.Var(sizeValue{&o.shmSize}, "shm-size", "size of /dev/shm (default 64MiB)")
	list(&o.tmpfs, "tmpfs", "", "DST[:SIZE]", "mount a directory in memory (repeat)")
	list(&o.ulimits, "ulimit", "", "NAME=SOFT[:HARD]", "limit a resource of each process, as in nofile=1024 (repeat)")
	o.overCapacity = overDeny
	flags.Var(choiceValue{&o.overCapacity, []string{overDeny, overTry}}, "over-capacity", "what to do with a task that asks for more CPUs, memory or disk than there are")
	flags.Var(durationValue{&o.timeout}, "timeout", "end the task after this time, as in 90s or 1h30m; 0s is no limit")
	o.grace = -1
	flags.Var(durationValue{&o.grace}, "grace", "time between the stop signal and KILL (default 10s)")
	flags.StringVar(&o.stopSignal, "stop-signal", "", "`SIGNAL` that asks the task to end (default the image's, else TERM)")
	flags.BoolVar(&o.noInit, "no-init", false, "run the command itself as process 1")

	flags.StringVar(&o.network, "network", "", "network of the task: `none|host|bridge`, or one of the daemon's own with --engine docker (default none)")
	list(&o.publish, "publish", "p", "[HOST:]PORT", "let the host's port, any that is free if not given (see berth inspect), lead to the task's: with --engine docker and a --network (repeat)")
	list(&o.addHost, "add-host", "", "NAME:ADDRESS", "add a line to /etc/hosts (repeat)")
	flags.StringVar(&o.hostname, "hostname", "", "host `NAME` in the container")
	flags.StringVar(&o.user, "user", "", "run as this `UID[:GID]` or name (default the image's)")
	list(&o.groups, "group-add", "", "GROUP", "add a supplementary group (repeat)")
	flags.BoolVar(&o.readOnly, "read-only", false, "mount the root file system read-only")
	list(&o.capAdd, "cap-add", "", "CAP", "add a capability (repeat)")
	list(&o.capDrop, "cap-drop", "", "CAP", "drop a capability, or ALL (repeat)")
	list(&o.securityOpt, "security-opt", "", "OPTION", "what confines the task beside: seccomp=FILE|unconfined (default Docker's profile), apparmor=PROFILE|unconfined, label=KEY:VALUE|disable of SELinux (repeat)")
	flags.StringVar(&o.cgroupParent, "cgroup-parent", "", "make the task's cgroups beneath the one at this `PATH`, or in this slice of systemd (default the engine's own)")
	list(&o.sysctls, "sysctl", "", "K=V", "set a kernel parameter of the container's namespaces (repeat)")
	list(&o.gpus, "gpus", "", "GPUS", "GPUs that the task is lent, by number, name or what they must be like (repeat; see berth run --help)")
	flags.BoolVar(&o.allowBusy, "allow-busy", false, "lend GPUs, too, that processes of others have open")
	flags.BoolVar(&o.preflight, "gpu-preflight", false, "look in the container, before a step's command, whether the GPUs open; one that does not ends the task")
	list(&o.devices, "device", "", "HOST[:CONTAINER][:rwm]", "give the task a device (repeat)")

	flags.StringVar(&o.name, "name", "", "`NAME` of the task; no other of yours that has not ended may have it")
	list(&o.labels, "label", "", "K=V", "label the task (repeat)")
	flags.Var(choiceValue{&o.pull, []string{"always", "missing", "never"}}, "pull", "when to fetch the image (default missing)")
	flags.BoolVar(&o.insecure, "insecure", false, "allow registries without TLS, or with a certificate that cannot be verified")
	flags.StringVar(&o.platform, "platform", "", "`OS/ARCH` of the image (default this machine's)")
	flags.StringVar(&o.runtime, "runtime", "", "what starts the container: `direct|auto|NAME|PATH` of an OCI runtime")
	flags.BoolVar(&o.detach, "detach", false, "print the task's ID and let it run; berth logs has the last 64 MiB of each of its streams")
	flags.BoolVar(&o.ephemeral, "ephemeral", false, "have the daemon keep no copy of what the task writes, with --engine docker")
	flags.BoolVar(&o.noWait, "no-wait", false, "fail where the machine has no room now")
	flags.BoolVar(&o.keep, "keep", false, "keep what is left of the task, until berth rm, and say where: volume-N-PATH of each volume and output, upper-TASK-N of what step N wrote elsewhere")
	flags.BoolVar(&o.quiet, "quiet", false, "say nothing but what went wrong")
	o.progress = "auto"
	flags.Var(choiceValue{&o.progress, []string{"auto", "plain", "none"}}, "progress", "how to show the progress of pulls")
	flags.StringVar(&o.result, "result", "", "write how the task ended to this `FILE`, as one JSON object")
	flags.BoolVar(&o.dryRun, "dry-run", false, "print the task document that the flags amount to, and run nothing")
	o.format = "yaml"
	flags.Var(choiceValue{&o.format, []string{"yaml", "json"}}, "format", "format of --dry-run")
}

// runTask runs the task that flags and arguments amount to.
func (a *app) runTask(ctx context.Context, o *runOptions, args []string) error {
	a.called = true
	if !o.dryRun {
		if err := a.removeResult("run", o.result, o.file); err != nil {
			return err
		}
	}
	task, warnings, err := a.taskOf(o, args)
	if err == nil {
		err = a.checkResultFile("run", o.result, runner.Writable(&task))
	}
	if err == nil {
		err = a.checkBrokenHook()
	}
	if err != nil {
		return err
	}
	if o.dryRun {
		data, err := tes.Marshal(task, document.Format(o.format))
		if err != nil {
			return err
		}
		_, err = a.out.Write(data)
		return err
	}
	if !o.quiet {
		for _, w := range warnings {
			a.say("warning: %s", w)
		}
	}
	task.ID = berth.NewID()
	a.uniqueNames = o.name != ""
	if o.detach {
		return a.runDetached(ctx, o, task)
	}
	return a.runForeground(ctx, o, task)
}

// checkBrokenHook refuses a hook that could not be run when it is needed.
func (a *app) checkBrokenHook() error {
	if a.global.brokenHook == "" {
		return nil
	}
	if _, err := exec.LookPath(a.global.brokenHook); err != nil {
		return &quietError{fmt.Sprintf("run: --broken-hook: %s cannot be run (%v); name a program that is there", a.global.brokenHook, errors.Unwrap(err)), berth.ErrInvalid}
	}
	return nil
}

// documentFlags are those that make no sense with a document, which says them for each of its executors.
var documentFlags = []string{"entrypoint", "workdir", "stdin", "stdout", "stderr"}

// check refuses flags that contradict each other.
func (o *runOptions) check(args []string) error {
	switch {
	case o.file == "" && len(args) == 0:
		return invalid("run: which image? write berth run [flags] IMAGE [COMMAND], or berth run -f TASK")
	case o.file == "" && strings.HasPrefix(args[0], "-"):
		return invalid("run: %q is no image", args[0])
	case o.file != "" && len(args) > 0:
		return invalid("run: %q is an argument too many: with --file the document says what is run; flags go before --file's value or after it, and no IMAGE", args[0])
	case o.detach && o.interactive:
		return invalid("run: --detach and --interactive contradict each other: a detached task has no standard input")
	case o.detach && o.ephemeral:
		return invalid("run: --detach and --ephemeral contradict each other: what a detached task writes is kept by the daemon while no berth reads it")
	case o.changed("format") && !o.dryRun:
		return invalid("run: --format is that of the document which --dry-run prints; add --dry-run, or for a result in JSON write --result FILE")
	case o.detach && o.result != "":
		return invalid("run: --result needs a task in the foreground; of a detached one, berth wait --result FILE writes it")
	}
	if o.file != "" {
		if i := slices.IndexFunc(documentFlags, o.given); i >= 0 {
			return invalid("run: --%s and --file contradict each other: the document says it for each executor", documentFlags[i])
		}
	}
	return nil
}
