package cli

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/ociruntime"
)

// moreOf adds what NVIDIA's library knows.
func moreOf(h *device.Host) func(context.Context, []device.Device) ([]device.Device, error) {
	return asker(h).More
}

// ociMain runs berth as a runtime or a hook, and reports whether it was called as one. It comes before all else, since
// each start of a container by Docker calls a runtime some five times.
func ociMain(args []string) (exit int, is bool) {
	if len(args) == 3 && slices.Contains([]string{"oci-runtime", "oci-hook"}, args[1]) && asksHelp(args[2:]) {
		return 0, false // about the command; under another name it is asked of the runtime
	}
	return ociruntime.Main(args, moreOf)
}

func asksHelp(args []string) bool { return len(args) == 1 && (args[0] == "--help" || args[0] == "-h") }

// ociCommand is for the help: ociMain comes before it, unless flags stand before the command.
func (a *app) ociCommand(name string, cmd *cobra.Command) *cobra.Command {
	cmd.DisableFlagParsing = true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if asksHelp(args) {
			return cmd.Help()
		}
		exit, _ := ociMain(append([]string{"berth", name}, args...))
		if exit != 0 {
			return exitError(exit)
		}
		return nil
	}
	return cmd
}

func (a *app) ociRuntimeCommand() *cobra.Command {
	return a.ociCommand("oci-runtime", &cobra.Command{
		Use:   "oci-runtime [--berth-config FILE] [flags of the runtime] COMMAND [ARG...]",
		Short: "Be an OCI runtime for Docker, Podman or containerd: give containers the GPUs they ask for, and hand on",
		Long: `Stand before an OCI runtime. At create (and run and restore) the GPUs that the container asks for, by the conventions
of NVIDIA's and AMD's container toolkits, are lent to it from this host's ledger; one that another container or task
has, or a process that was lent nothing, is refused. The bundle's configuration is edited to bring them, and berth
becomes the runtime that its own configuration names, with the same command line. At delete, and at the latest when
nothing of the container runs any more, the GPUs are free again. All other commands are the runtime's.

Engines that take a program without arguments call it as berth-oci-runtime: a link to berth, or the program of that name,
which starts faster. docs/oci-runtime.md tells
how to add it to Docker, Podman and containerd, and what can be configured in /etc/berth/oci-runtime.toml, of which
--berth-example prints one that states every option.`,
		Example: `  berth oci-runtime --berth-example > /etc/berth/oci-runtime.toml
  dockerd --add-runtime berth=/usr/local/bin/berth-oci-runtime
  docker run --runtime berth -e NVIDIA_VISIBLE_DEVICES=0 nvidia/cuda nvidia-smi`,
	})
}

func (a *app) ociHookCommand() *cobra.Command {
	return a.ociCommand("oci-hook", &cobra.Command{
		Use:   "oci-hook [--berth-config FILE] prestart|createRuntime|poststart|poststop",
		Short: "Be an OCI hook that gives a container the GPUs it asks for",
		Long: `Bring a container that an OCI runtime has made, and not started, the GPUs that it asks for, as berth oci-runtime
does: lent from this host's ledger until nothing of the container runs any more. The container's OCI state comes on
standard input. Device nodes and mounts are made beneath the container's root, its device rules are extended, and
the dynamic linker's cache is brought up to date; what only a runtime can bring, environment and groups, is not.
createRuntime is the same as prestart; poststart and poststop have nothing to do.

dockerd calls it for docker run --gpus where it finds it under the name nvidia-container-runtime-hook.`,
	})
}
