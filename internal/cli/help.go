package cli

import "github.com/spf13/cobra"

func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Tell about a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				if target == nil {
					target = cmd.Root()
				}
				if len(rest) == 0 {
					rest = args
				}
				return noArgs(target, rest)
			}
			return target.Help()
		},
	}
}
