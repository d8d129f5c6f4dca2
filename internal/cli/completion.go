package cli

import (
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/tes/document"
)

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
				return cmd.Root().GenBashCompletionV2(a.out, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.out)
			case "fish":
				return cmd.Root().GenFishCompletion(a.out, true)
			}
			return usageError(cmd, "there is no script for %q%s; there are bash, zsh and fish", args[0], document.DidYouMean(args[0], shells))
		},
	}
}
