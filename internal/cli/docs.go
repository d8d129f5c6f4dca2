package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// docsCommand writes docs/cli.md; a test compares.
func (a *app) docsCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "docs",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return writeReference(a.out, cmd.Root()) },
	}
}

const referenceHead = `<!-- Made by berth docs. Change the commands in internal/cli, then run: go generate ./internal/cli -->

# The command line

Results go to standard output, all else to standard error. A flag comes before the arguments of its command; for
` + "`run` and `exec`" + ` flags end at IMAGE and TASK.

## Settings

Each flag can also be set outside of the command line. The command line wins over the environment, the environment
over the user's configuration file, that one over ` + "`/etc/berth/config.yaml`" + `.

- **Environment.** ` + "`BERTH_`" + `, the command where the flag is not one of all commands, and the flag, in capitals with
  underscores: ` + "`BERTH_DATA_DIR`, `BERTH_RUN_MEMORY`, `BERTH_IMAGE_PULL_PLATFORM`" + `. The values of a flag that may be
  repeated stand on lines of their own.
- **Configuration file.** ` + "`$XDG_CONFIG_HOME/berth/config.yaml`" + ` (` + "`~/.config`" + ` where that is not set), or the one that
  ` + "`--config` or `BERTH_CONFIG`" + ` names. YAML, or JSON in a file so named; flags are keys, those of a command in a map with its name:

` + "```yaml" + `
data_dir: /scratch/berth
run:
  memory: 2GiB
  label: [team=genomics]
image:
  pull:
    progress: plain
` + "```" + `

An unknown flag or key is an error that names the nearest one, and so is a variable that looks like a misspelt one.

## Sizes and durations

Sizes are numbers, which may have fractions, with a unit: ` + "`K M G T P E`" + ` are powers of 1000 (a B may follow), ` + "`KiB` to `EiB`" + ` powers
of 1024; without a unit they are bytes. Durations: ` + "`90s`, `1h30m`, `2d`" + `.

## Exit codes

| what happened | ` + "`berth run`" + ` | ` + "`berth exec`" + ` | other commands |
| --- | --- | --- | --- |
| all is well | 0 | 0 | 0 |
| the command ended | its own code; 128+n for signal n | its own code; 128+n | |
| the command cannot be run / is not there | 126 / 127 | 126 / 127 | |
| memory limit · time limit · disk limit | 137 · 124 · 125 | | |
| canceled (Ctrl-C, ` + "`berth stop`" + `) | 130 | 130 | 130; 0 of what only shows until then: ` + "`logs -f`, `ps --watch`, `gpu ls --watch`" + ` |
| wrong usage, a malformed value, not supported | 125 | 125 | 2 |
| not there, denied, in conflict, more than this machine has | 125 | 125 | 3 |
| a registry or the monitor does not answer; a retry may help | 125 | 125 | 5 |
| anything else that is berth's own | 125 | 125 | 1 |

A command's own 124, 125 or 137 looks the same to a shell: the last line on standard error and ` + "`--result`" + ` tell them apart.

## How a task ended

` + "`run --result`, `wait --format json` and `inspect`" + ` tell it the same, whatever engine and runtime ran the task. ` + "`exit_code`" + ` is the
command's own: 128+n where signal n ended it, -1 where no command ran or nobody knows. ` + "`berth_exit_code`" + ` is that of ` + "`berth run`" + `.
` + "`reason`" + ` says why the last step ended, and ` + "`detail`" + ` the rest in words; ` + "`state`" + ` alone says whether all is well.

| what happened | ` + "`state` | `reason` | `exit_code` | `berth_exit_code`" + ` |
| --- | --- | --- | --- | --- |
| all is well | COMPLETE | Exited | 0 | 0 |
| the command exited with n | EXECUTOR_ERROR | Exited | n | n |
| a signal n ended it that is not berth's | EXECUTOR_ERROR | Signaled | 128+n | 128+n |
| it cannot be run / is not there | EXECUTOR_ERROR | NeverStarted | 126 / 127 | 126 / 127 |
| memory limit | EXECUTOR_ERROR | OutOfMemory | its own, mostly 137 | 137 |
| time limit | EXECUTOR_ERROR | TimedOut | its own, mostly 143 (TERM) or 137 (KILL); -1 between two steps | 124 |
| disk limit | EXECUTOR_ERROR | OutOfDisk | its own | 125 |
| canceled while it ran | CANCELED | Canceled | its own, mostly 143 or 137 | 130 |
| canceled before it ran | CANCELED | Canceled | -1 | 130 |
| refused, or no image, input or container | SYSTEM_ERROR | | -1 | 125 |
| an output was not produced or cannot be written | SYSTEM_ERROR | Exited | 0 | 125 |
| nobody knows how it ended | SYSTEM_ERROR | Lost | -1 | 125 |
| a cluster took its place back, or somebody ended berth's monitor (SIGTERM; Docker and Podman have none) | SYSTEM_ERROR | Preempted | its own, or -1 | 125 |

Of a task that is Lost, ` + "`started` and `runtime`" + ` are told where its start was recorded, ` + "`ended`" + ` is when it was found to be lost, and ` + "`usage`" + `
of the lost step is unknown. Where berth's monitor was killed, the outputs are collected as the command left them. Where the
berth of a task in the foreground was killed they are not: what the task wrote in its container goes with it.
`

// writeReference writes what the help of every command says, as one document.
func writeReference(w io.Writer, root *cobra.Command) error {
	var b strings.Builder
	b.WriteString(referenceHead)
	b.WriteString("\n## Flags of all commands\n\n")
	writeFlags(&b, root.PersistentFlags())
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			if c.Hidden {
				continue
			}
			writeCommand(&b, c)
			walk(c)
		}
	}
	walk(root)
	_, err := io.WriteString(w, b.String())
	return err
}

func writeCommand(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n## %s\n\n", c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "    %s\n\n%s\n", c.UseLine(), markdown(text))
	if c.Example != "" {
		fmt.Fprintf(b, "\n```\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
	}
	if c.HasAvailableLocalFlags() {
		b.WriteString("\n")
		writeFlags(b, c.LocalNonPersistentFlags())
	}
}

// markdown indents what is indented by two as code.
func markdown(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "  ") {
			lines[i] = "  " + l
		}
	}
	return strings.Join(lines, "\n")
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| flag | |\n| --- | --- |\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind != "" {
			name += " " + kind
		}
		if f.DefValue != "" && f.DefValue != "false" && !strings.Contains(usage, "(default") {
			usage += " (default " + f.DefValue + ")"
		}
		cell := strings.NewReplacer("|", "\\|", "\n", " ")
		fmt.Fprintf(b, "| `%s` | %s |\n", strings.ReplaceAll(name, "|", "\\|"), cell.Replace(usage))
	})
}
