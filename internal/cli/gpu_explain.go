package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/inject"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
)

type gpuExplainOptions struct {
	root, bundle, image, gpus, hook, format string
	env                                     []string
	privileged                              bool
}

func (a *app) gpuExplainCommand() *cobra.Command {
	o := &gpuExplainOptions{}
	cmd := &cobra.Command{
		Use:   "explain [flags] [TASK]",
		Short: "Tell what of the GPUs would get into a container, by which rule, and what is refused",
		Long: `Tell what of this host's GPUs would get into a container: which devices, by which rule, from which file, what is refused
and why. Nothing is started or lent.

  --bundle DIR            an OCI bundle, by the conventions of NVIDIA's and AMD's container toolkits
  --image I, --env K=V    an image with an environment, by the same conventions
  --gpus REQUEST          what berth run --gpus REQUEST would lend; with --image, whether its requirements are met
  TASK                    what a task of berth was lent

The conventions are those that oci-runtime and oci-hook of berth follow. berth run lends what --gpus asks for and
nothing else, whatever an image says.

The exit code is 0 whether or not something is refused of a bundle, an image or a task; GPUs that are asked for and
that this host could never give end it with 3. With --format json, it is an object with the keys devices,
vendor, strategy, driver_capabilities, mig_config_devices, mig_monitor_devices, requirements (each with expression,
satisfied and host), edits (each with device, name, rule, from and what CDI calls containerEdits) and errors.`,
		Example: `  berth gpu explain --image nvidia/cuda:12.4.1-base-ubuntu22.04 -e NVIDIA_VISIBLE_DEVICES=0
  berth gpu explain --bundle /run/containerd/io.containerd.runtime.v2.task/default/c1 --format json
  berth gpu explain --gpus model=H200,count=2`,
		Args: argCount(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.gpuExplain(cmd.Context(), cmd, o, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.bundle, "bundle", "", "explain the OCI bundle in this `DIR`")
	flags.StringVar(&o.image, "image", "", "explain a container of this `IMAGE`, which must be here")
	flags.VarP(listValue{&o.env, "K=V"}, "env", "e", "a variable of the container, over the image's (repeat)")
	flags.BoolVar(&o.privileged, "privileged", false, "the container is privileged, with --image or --env")
	flags.StringVar(&o.gpus, "gpus", "", "explain what this `REQUEST` would be lent")
	flags.StringVar(&o.hook, "hook", "", "absolute `PATH` of berth-cdi-hook, as container runtimes find it")
	rootFlag(cmd, &o.root)
	formatFlag(cmd, &o.format)
	return cmd
}

// check refuses what cannot be explained together.
func (o *gpuExplainOptions) check(cmd *cobra.Command, args []string) error {
	image := o.image != "" || len(o.env) > 0 || o.privileged
	switch {
	case o.bundle != "" && (image || o.gpus != "" || len(args) > 0):
		return usageError(cmd, "--bundle stands alone: the bundle says all")
	case len(args) > 0 && (image || o.gpus != ""):
		return usageError(cmd, "a task stands alone: its record says all")
	case o.bundle == "" && !image && o.gpus == "" && len(args) == 0:
		return usageError(cmd, "what is to be explained? Give --bundle, --image, --env, --gpus or a task")
	}
	for _, e := range o.env {
		if strings.IndexByte(e, '=') <= 0 {
			return usageError(cmd, "--env: %q is no variable: write K=V", e)
		}
	}
	return nil
}

func (a *app) gpuExplain(ctx context.Context, cmd *cobra.Command, o *gpuExplainOptions, args []string) error {
	if err := o.check(cmd, args); err != nil {
		return err
	}
	ctx, stop := notify(ctx)
	defer stop()
	var d *inject.Decision
	var err error
	if len(args) > 0 {
		d, err = a.explainTask(ctx, args[0], o.root)
	} else {
		d, err = a.explainContainer(ctx, o)
	}
	if err != nil {
		return err
	}
	if o.format == "json" {
		enc := jsonEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	_, err = a.out.Write(explained(d))
	return err
}

func (a *app) explainContainer(ctx context.Context, o *gpuExplainOptions) (*inject.Decision, error) {
	c, err := a.containerOf(ctx, o)
	if err != nil {
		return nil, err
	}
	h, err := a.openHost(o.root)
	if err != nil {
		return nil, err
	}
	host := inject.Host{Host: h}
	if host.Config, _, err = inject.ReadConfig(h, a.getenv); err != nil {
		return nil, err
	}
	found, err := a.findGPUs(ctx, h)
	if err != nil {
		return nil, err
	}
	host.Devices = found.devices
	if slices.Contains(host.Vendors(), nvidia.Vendor) {
		if host.Hooks.Path, err = hookProgram(o.hook, h); err != nil {
			return nil, err
		}
	}
	var d *inject.Decision
	if o.gpus != "" {
		d, err = a.explainRequest(ctx, host, found, c, o.gpus)
	} else {
		d, err = device.Within(ctx, a.patience, "a driver of GPUs", func() (*inject.Decision, error) { return host.Decide(c), nil })
		if err != nil {
			return nil, err
		}
		if o.bundle == "" && d.Strategy != inject.None {
			a.say("by the conventions of container toolkits; berth run would lend nothing without --gpus")
		}
	}
	return d, err
}

// containerOf reads the container that is to be explained.
func (a *app) containerOf(ctx context.Context, o *gpuExplainOptions) (inject.Container, error) {
	if o.bundle != "" {
		file := filepath.Join(o.bundle, "config.json")
		data, err := a.readFrom(file)
		if err != nil {
			return inject.Container{}, err
		}
		c, err := inject.ParseBundle(data)
		if err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
		return c, err
	}
	var env []string
	if o.image != "" {
		err := a.withImages(ctx, func(ctx context.Context, images imageStore) error {
			info, err := images.Inspect(ctx, o.image)
			env = info.Config.Env
			return err
		})
		if err != nil {
			return inject.Container{}, err
		}
	}
	return inject.Image(append(env, o.env...), o.privileged)
}

// explainRequest says what a request would be lent now, of what nobody has.
func (a *app) explainRequest(ctx context.Context, host inject.Host, found gpus, c inject.Container, request string) (*inject.Decision, error) {
	r, err := device.ParseRequest(request)
	if err != nil {
		return nil, err
	}
	pool, l, err := a.poolOf(found, host.Hooks.Path)
	if err != nil {
		return nil, err
	}
	task := &berth.Task{Resources: berth.Resources{GPUs: texts([]string{request})}}
	if err := pool.Check(ctx, task); err != nil {
		return nil, err
	}
	choose, err := pool.Choose(ctx, task)
	if err != nil {
		return nil, err
	}
	var taken map[string]ledger.Taken
	if !host.Recorded() {
		s, err := l.Snapshot(ctx)
		if err != nil {
			return nil, err
		}
		taken = s.Devices
	}
	lent, err := choose(taken)
	if err != nil && !errors.Is(err, berth.ErrUnavailable) {
		return nil, err
	}
	var grants []berth.Grant
	if err == nil {
		var notes []string
		grants, notes, err = pool.Grants(ctx, task, lent, [][]string{c.Environ})
		for _, note := range notes {
			a.say("%s", note)
		}
	}
	var uuids []string
	for _, d := range lent {
		uuids = append(uuids, d.ID)
	}
	return host.Lend(c, uuids, grants, r.Capabilities, "--gpus "+request, err)
}

// explainTask says what a task was lent, from its record; what the host with a root has now of what its image requires.
func (a *app) explainTask(ctx context.Context, ref, root string) (*inject.Decision, error) {
	h, err := a.openTasks(ctx)
	if err != nil {
		return nil, err
	}
	defer h.close()
	r, err := a.find(ctx, h, ref)
	if err != nil {
		return nil, err
	}
	rec, err := h.runner.Record(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	asked := string(rec.Task.Resources.GPUs)
	if asked == "" || asked == "null" {
		return inject.Granted(nil, "", nil)
	}
	if rec.Admitted == nil && rec.Result == nil {
		return nil, fmt.Errorf("task %s: %w: nothing has been lent to it yet", r.ID, berth.ErrUnavailable)
	}
	return a.explainLent(ctx, rec, "resources.gpus "+asked, root)
}

// explainLent says what the devices that a task was lent brought into its containers, and what its images require of them.
func (a *app) explainLent(ctx context.Context, rec *runner.Record, rule, root string) (*inject.Decision, error) {
	dev, err := a.openHost(root)
	if err != nil {
		return nil, err
	}
	var grants []berth.Grant
	if rec.Opening != nil {
		grants = rec.Opening.Spec.Grants
	}
	d, err := inject.Granted(grants, rule, cdi.NewCache(dev.CDI()))
	if err != nil {
		return nil, err
	}
	var uuids, capabilities []string
	for _, g := range grants {
		uuids, capabilities = append(uuids, g.UUID), append(capabilities, g.Capabilities...)
	}
	if grants == nil && rec.Admitted != nil { // it was refused for what its image requires, perhaps
		for _, lent := range rec.Admitted.Devices {
			uuids = append(uuids, lent.ID)
		}
	}
	found, err := a.findGPUs(ctx, dev)
	if err != nil {
		return nil, err
	}
	host := inject.Host{Host: dev, Devices: found.devices}
	if host.Config, _, err = inject.ReadConfig(dev, a.getenv); err != nil {
		return nil, err
	}
	containers, err := a.containersOf(ctx, rec)
	if err != nil {
		return nil, err
	}
	host.Require(d, containers, uuids, capabilities)
	if grants == nil && rec.Result != nil && len(d.Errors) == 0 {
		d.Errors = append(d.Errors, rec.Result.Detail)
	}
	return d, nil
}

// containersOf are the containers of a task's steps, by their environments. Images that are not here any more, and were
// not recorded, say nothing.
func (a *app) containersOf(ctx context.Context, rec *runner.Record) (all []inject.Container, err error) {
	for _, s := range rec.Task.Steps {
		var env []string
		if im, ok := rec.Image(&s); ok {
			env = im.Config.Env
		} else if err := a.at(placeOf(rec.Task)).withImages(ctx, func(ctx context.Context, images imageStore) error {
			info, err := images.Inspect(ctx, s.Image)
			env = info.Config.Env
			return err
		}); err != nil {
			a.say("what the image %s requires is not known: %v", s.Image, err)
		}
		c, err := inject.Image(append(slices.Clone(env), s.Env...), false)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// explained is a decision in words.
func explained(d *inject.Decision) []byte {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	asks := strings.Join(d.Devices, ", ")
	switch {
	case len(d.Devices) == 0:
		asks = "no GPU"
	case asks == "":
		asks = "the driver's files, and no GPU"
	}
	line("asks for", "%s", asks)
	line("vendor", "%s", dash(d.Vendor))
	line("strategy", "%s", d.Strategy)
	line("capabilities", "%s", dash(d.DriverCapabilities))
	for _, m := range []struct{ name, value string }{{"MIG config", d.MIGConfig}, {"MIG monitor", d.MIGMonitor}} {
		if m.value != "" {
			line(m.name, "%s", m.value)
		}
	}
	for _, r := range d.Requirements {
		verdict := "met by"
		if !r.Satisfied {
			verdict = "not met by"
		}
		line("requires", "%s: %s %s", r.Expression, verdict, r.Host)
	}
	for _, e := range d.Edits {
		line("gets", "%s, by %s, from %s", strings.Join(unique(e.Name, e.Device), " "), e.Rule, e.From)
		for _, n := range e.DeviceNodes {
			line("", "  node %s %d:%d", n.Path, n.Major, n.Minor)
		}
		for _, text := range []struct {
			n    int
			what string
		}{{len(e.Mounts), "mounts"}, {len(e.Hooks), "hooks"}, {len(e.AdditionalGIDs), "groups"}} {
			if text.n > 0 {
				what := text.what
				if text.n == 1 {
					what = strings.TrimSuffix(what, "s")
				}
				line("", "  %d %s", text.n, what)
			}
		}
		for _, env := range e.Env {
			line("", "  variable %s", env)
		}
	}
	for _, e := range d.Errors {
		line("refused", "%s", e)
	}
	_ = w.Flush() // to memory
	return out.Bytes()
}

// unique are texts without those that are empty or there already.
func unique(texts ...string) (all []string) {
	for _, t := range texts {
		if t != "" && (len(all) == 0 || all[0] != t) {
			all = append(all, t)
		}
	}
	return all
}
