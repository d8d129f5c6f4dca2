package cli

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/tes/document"
)

// bashAlone has the script of bash work without the package bash-completion, whose functions it calls.
const bashAlone = `
__berth_init_completion()
{
    COMPREPLY=()
    if [[ $(type -t _get_comp_words_by_ref) = function ]]; then
        _get_comp_words_by_ref "$@" cur prev words cword
        return
    fi
    cword=$COMP_CWORD
    words=("${COMP_WORDS[@]}")
    cur=${words[cword]}
    prev=${words[cword-1]}
}
`

func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Long: `Print a script that completes berth's commands and flags.

  bash   source <(berth completion bash)
  zsh    berth completion zsh > "${fpath[1]}/_berth"
  fish   berth completion fish > ~/.config/fish/completions/berth.fish`,
		Args:              argCount(1, 1),
		ValidArgs:         shells,
		ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				if err := cmd.Root().GenBashCompletionV2(a.out, true); err != nil {
					return err
				}
				_, err := io.WriteString(a.out, bashAlone)
				return err
			case "zsh":
				return cmd.Root().GenZshCompletion(a.out)
			case "fish":
				return cmd.Root().GenFishCompletion(a.out, true)
			}
			return usageError(cmd, "there is no script for %q%s; there are bash, zsh and fish", args[0], document.DidYouMean(args[0], shells))
		},
	}
}
