package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
)

type psOptions struct {
	all, quiet, watch bool
	labels            []string
	state             []string
	last              int64
	format            string
}

func (a *app) psCommand() *cobra.Command {
	o := &psOptions{}
	cmd := &cobra.Command{
		Use:   "ps [flags]",
		Short: "List tasks",
		Long: `List the tasks that have not ended, the newest first; with --all those that have, too.

With --watch, the list is followed by a line for each change, until berth is interrupted. With --format json,
each task is one JSON object on a line of its own; with --watch too, at each change.`,
		Example: `  berth ps
  berth ps -a --label team=genomics --format json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.ps(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.all, "all", "a", false, "also those that have ended")
	flags.BoolVarP(&o.quiet, "quiet", "q", false, "IDs only")
	flags.BoolVar(&o.watch, "watch", false, "go on, with a line for each change")
	flags.Var(listValue{&o.labels, "K[=V]"}, "label", "only tasks with this label (repeat)")
	flags.Var(listValue{&o.state, "STATE"}, "state", "only tasks in this state, as in RUNNING (repeat)")
	flags.Var(intValue{&o.last, 1}, "last", "only the newest N, ended or not")
	formatFlag(cmd, &o.format)
	return cmd
}

// taskLine is what ps tells of a task.
type taskLine struct {
	ID       string            `json:"id"`
	Name     string            `json:"name,omitempty"`
	State    berth.State       `json:"state"`
	Reason   berth.Reason      `json:"reason,omitempty"`
	ExitCode *int              `json:"exit_code,omitempty"`
	Detail   string            `json:"detail,omitempty"`
	Image    string            `json:"image"`
	Command  []string          `json:"command,omitempty"`
	Steps    int               `json:"steps"`
	Labels   map[string]string `json:"labels,omitempty"`
	Detached bool              `json:"detached"`
	Created  time.Time         `json:"created"`
	Started  *time.Time        `json:"started,omitempty"`
	Ended    *time.Time        `json:"ended,omitempty"`
}

func lineOf(r store.Record) taskLine {
	l := taskLine{ID: r.ID, Name: r.Name, State: r.State, Steps: len(r.Task.Steps), Labels: r.Task.Labels, Detached: r.Detached, Created: r.Created}
	if len(r.Task.Steps) > 0 {
		l.Image, l.Command = r.Task.Steps[0].Image, append(r.Task.Steps[0].Entrypoint, r.Task.Steps[0].Command...)
	}
	if res := r.Result; res != nil {
		l.Reason, l.ExitCode, l.Detail, l.Started, l.Ended = res.Reason, &res.ExitCode, res.Detail, res.Started, res.Ended
	}
	return l
}

func (o *psOptions) filter() (store.Filter, error) {
	f := store.Filter{Limit: int(o.last)}
	for _, l := range o.labels {
		k, v, _ := strings.Cut(l, "=")
		if f.Labels == nil {
			f.Labels = map[string]string{}
		}
		f.Labels[k] = v
	}
	states := []berth.State{berth.Queued, berth.Initializing, berth.Running, berth.Canceling}
	all := append(states, berth.Complete, berth.ExecutorError, berth.SystemError, berth.Canceled)
	for _, s := range o.state {
		state := berth.State(strings.ToUpper(s))
		known := false
		for _, k := range all {
			known = known || k == state
		}
		if !known {
			var names []string
			for _, k := range all {
				names = append(names, string(k))
			}
			return f, invalid("ps: --state: %q is no state: there are %s", s, strings.Join(names, ", "))
		}
		f.States = append(f.States, state)
	}
	if f.States == nil && !o.all && o.last == 0 {
		f.States = states
	}
	return f, nil
}

func (a *app) ps(ctx context.Context, o *psOptions) error {
	filter, err := o.filter()
	if err != nil {
		return err
	}
	h, err := a.openTasks(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	if h.tasks == nil && o.watch {
		return &quietError{"ps: --watch: there are no tasks yet", berth.ErrNotFound}
	}
	if h.tasks != nil {
		a.settle(ctx, h)
	}
	var since int64
	if o.watch {
		if since, err = lastEvent(ctx, h.tasks); err != nil {
			return err
		}
	}
	p := newPrinter(a.out, o.format, o.quiet)
	if h.tasks != nil {
		for r, err := range h.tasks.List(ctx, filter) {
			if err != nil {
				return err
			}
			if err := p.task(lineOf(r)); err != nil {
				return err
			}
		}
	}
	if err := p.flush(); err != nil || !o.watch {
		return err
	}
	return a.watch(ctx, h, since, filter, p)
}

// lastEvent is the number of the newest event.
func lastEvent(ctx context.Context, s *store.Store) (seq int64, err error) {
	for e, err := range s.Events(ctx, 0, "") {
		if err != nil {
			return 0, err
		}
		seq = e.Seq
	}
	return seq, nil
}

// watch prints a task at each change of its state, until ctx ends.
func (a *app) watch(ctx context.Context, h *host, since int64, filter store.Filter, p *printer) error {
	ctx, stop := notify(ctx)
	defer stop()
	defer a.lookAfter(ctx, h)()
	for e, err := range h.tasks.Watch(ctx, since, "") {
		if errors.Is(err, berth.ErrCanceled) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.State == "" {
			continue
		}
		r, err := h.tasks.Get(ctx, e.Task)
		if err != nil {
			continue // it was removed meanwhile
		}
		l := lineOf(r)
		l.State = e.State
		if !hasLabels(r.Task.Labels, filter.Labels) {
			continue
		}
		if err := p.task(l); err != nil {
			return err
		}
		if err := p.flush(); err != nil {
			return err
		}
	}
	return nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || v != "" && got != v {
			return false
		}
	}
	return true
}

// printer writes tasks as a table, as JSON lines, or as IDs.
type printer struct {
	json  *json.Encoder
	table *tabwriter.Writer
	out   io.Writer
	head  bool
}

func newPrinter(out io.Writer, format string, quiet bool) *printer {
	switch {
	case quiet:
		return &printer{out: out}
	case format == "json":
		return &printer{json: jsonEncoder(out)}
	}
	return &printer{table: tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
}

// jsonEncoder writes one value a line, as text for people who read it without a browser.
func jsonEncoder(out io.Writer) *json.Encoder {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	return enc
}

func (p *printer) task(l taskLine) error {
	switch {
	case p.json != nil:
		return p.json.Encode(l)
	case p.table == nil:
		_, err := fmt.Fprintln(p.out, l.ID)
		return err
	}
	if err := p.header(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(p.table, "%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, dash(l.Name), l.stateWhy(), ago(l.Created), l.Image, command(l.Command))
	return err
}

// stateWhy is the state, and why a task that failed did.
func (l *taskLine) stateWhy() string {
	why := string(l.Reason)
	switch {
	case l.State == berth.ExecutorError && l.ExitCode != nil:
		if l.Reason == berth.Exited || l.Reason == berth.NeverStarted {
			why += fmt.Sprintf(" %d", *l.ExitCode)
		}
	case l.State == berth.SystemError && (why == "" || l.Reason == berth.Exited):
		why = short(l.Detail)
	case l.State != berth.SystemError:
		return string(l.State)
	}
	if why == "" {
		return string(l.State)
	}
	return string(l.State) + " (" + why + ")"
}

func (p *printer) header() error {
	if p.head {
		return nil
	}
	p.head = true
	_, err := fmt.Fprintln(p.table, "ID\tNAME\tSTATE\tCREATED\tIMAGE\tCOMMAND")
	return err
}

func (p *printer) flush() error {
	if p.table == nil {
		return nil
	}
	if err := p.header(); err != nil {
		return err
	}
	return p.table.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// command is a command on one short line.
func command(argv []string) string { return dash(short(strings.Join(argv, " "))) }

// short is the beginning of a text, in printable characters.
func short(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 40 {
		s = string(r[:39]) + "…"
	}
	return s
}

// ago says roughly how long ago t was.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	switch d := time.Since(t); {
	case d < 2*time.Second:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}
