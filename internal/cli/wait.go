package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
)

type waitOptions struct {
	format, result string
}

func (a *app) waitCommand() *cobra.Command {
	o := &waitOptions{}
	cmd := &cobra.Command{
		Use:   "wait [flags] TASK...",
		Short: "Wait for the end of tasks, and print their exit codes",
		Long: `Wait until each task has ended, and print its exit code, one a line, in the order of the arguments: the
code with which berth run would have ended. With --format json, each line is the object that berth run --result
writes. The exit code of berth wait itself is 0 once all have ended, however they have.`,
		Example: `  berth wait align
  berth wait --format json $(berth ps -q)`,
		Args: argCount(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.wait(cmd.Context(), o, args) },
	}
	formatFlag(cmd, &o.format)
	cmd.Flags().StringVar(&o.result, "result", "", "also write the result of the one task to this `FILE`, as one JSON object")
	return cmd
}

func (a *app) wait(ctx context.Context, o *waitOptions, refs []string) error {
	a.called = true
	if err := a.removeResult("wait", o.result, ""); err != nil {
		return err
	}
	if o.result != "" && len(refs) > 1 {
		return invalid("wait: --result takes one task, not %d", len(refs))
	}
	if err := a.checkResultFile("wait", o.result, nil); err != nil {
		return err
	}
	h, err := a.openTasks(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	ids := make([]string, len(refs))
	for i, ref := range refs {
		r, err := a.find(ctx, h, ref)
		if err != nil {
			return err
		}
		ids[i] = r.ID
	}
	ctx, stop := notify(ctx)
	defer stop()
	defer a.lookAfter(ctx, h)()
	for _, id := range ids {
		res, err := h.runner.Wait(ctx, id)
		if err != nil {
			return err
		}
		var writable []string
		if o.result != "" {
			rec, err := h.runner.Record(ctx, id)
			if err != nil {
				return err
			}
			writable = rec.Writable()
		}
		if err := a.printResult(o, res, writable); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printResult(o *waitOptions, res berth.Result, writable []string) error {
	if o.result != "" {
		if err := a.writeResult(o.result, res, writable); err != nil {
			return err
		}
	}
	if o.format == "json" {
		return jsonEncoder(a.out).Encode(tell(res))
	}
	_, err := fmt.Fprintln(a.out, taskExit(res))
	return err
}
