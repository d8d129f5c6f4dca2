package cli

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/tes"
	"github.com/berth-project/berth/tes/document"
)

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect TASK...",
		Short: "Tell all that is known of tasks, as a JSON list",
		Long: `Tell all that is known of tasks, as a JSON list with an object for each: the task document, the steps, what
happened, and how it ended. Of a running step, its IP address, the host's ports that lead to it, and what it uses now.`,
		Example:     `  berth inspect align`,
		Args:        argCount(1, -1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.inspect(cmd.Context(), args) },
	}
}

// taskDetails is what inspect tells of a task.
type taskDetails struct {
	ID       string          `json:"id"`
	Name     string          `json:"name,omitempty"`
	State    berth.State     `json:"state"`
	Created  time.Time       `json:"created"`
	Detached bool            `json:"detached"`
	Attempts int             `json:"attempts"` // of which all but the first were for what was lost
	Task     json.RawMessage `json:"task"`
	Steps    []stepDetails   `json:"steps"`
	GPUs     []berth.LentGPU `json:"gpus,omitempty"` // that it has, or had
	Log      []runner.Line   `json:"log"`
	Result   *told           `json:"result"`
	ExitCode *int            `json:"exit_code"` // of berth run
}

type stepDetails struct {
	ID      string       `json:"id"`
	Image   berth.Image  `json:"image"`
	Running bool         `json:"running"`
	LogDir  string       `json:"log_dir"`
	Address string       `json:"address,omitempty"`
	Ports   []berth.Port `json:"ports,omitempty"` // published
	Usage   *berth.Usage `json:"usage,omitempty"` // now
	Exit    *berth.Exit  `json:"exit,omitempty"`
}

func (a *app) inspect(ctx context.Context, refs []string) error {
	list := []taskDetails{}
	for _, ref := range refs {
		d, err := a.inspectTask(ctx, ref)
		if err != nil {
			return err
		}
		list = append(list, d)
	}
	enc := jsonEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(list)
}

func (a *app) inspectTask(ctx context.Context, ref string) (taskDetails, error) {
	h, r, err := a.openOf(ctx, ref)
	if err != nil {
		return taskDetails{}, err
	}
	defer h.close()
	rec, err := h.runner.Record(ctx, r.ID)
	if err != nil {
		return taskDetails{}, err
	}
	return h.details(ctx, r.ID, rec)
}

func (h *host) details(ctx context.Context, id string, rec *runner.Record) (taskDetails, error) {
	doc, err := tes.Marshal(rec.Task, document.JSON)
	if err != nil {
		if doc, err = json.Marshal(rec.Task); err != nil { // not UTF-8
			return taskDetails{}, err
		}
	}
	d := taskDetails{
		ID: id, Name: rec.Task.Name, State: rec.State, Created: rec.Created, Detached: rec.Detached, Attempts: 1 + rec.Attempts,
		Task: doc, Steps: []stepDetails{}, GPUs: rec.GPUs(), Log: rec.Log,
	}
	if rec.Result != nil {
		res := tell(*rec.Result)
		d.Result, d.ExitCode = &res, &res.BerthExitCode
	}
	if d.Log == nil {
		d.Log = []runner.Line{}
	}
	for i, s := range rec.Steps {
		if s.Spec.ID == "" {
			continue
		}
		step := stepDetails{ID: s.Spec.ID, Image: s.Spec.Image, LogDir: h.runner.LogDir(id, i), Exit: s.Exit, Running: s.Started && s.Exit == nil}
		if step.Running {
			h.live(ctx, id, &step)
			if gpus := h.runner.Measured(ctx, rec, i); gpus != nil {
				if step.Usage == nil {
					step.Usage = &berth.Usage{}
				}
				step.Usage.GPUs = gpus
			}
		}
		d.Steps = append(d.Steps, step)
	}
	return d, nil
}

// live fills in what only a running container knows. That it has ended meanwhile is no error.
func (h *host) live(ctx context.Context, task string, step *stepDetails) {
	c, err := h.container(ctx, task, step.ID)
	if err != nil {
		return
	}
	if s, ok := c.(berth.Statser); ok {
		if usage, err := s.Stats(ctx); err == nil {
			step.Usage = &usage
		}
	}
	if addresser, ok := c.(berth.Addresser); ok {
		if address, err := addresser.Address(ctx); err == nil {
			step.Address = address
		}
	}
	if p, ok := c.(berth.Publisher); ok {
		if ports, err := p.Published(ctx); err == nil {
			step.Ports = ports
		}
	}
}

// container finds the container of a step.
func (h *host) container(ctx context.Context, task, step string) (berth.Container, error) {
	sandbox, err := h.engine.Attach(ctx, task)
	if err != nil {
		return nil, err
	}
	return sandbox.Container(ctx, step)
}

func isNotFound(err error) bool { return errors.Is(err, berth.ErrNotFound) }
