package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia/nvml"
)

type gpuLsOptions struct {
	root   string
	watch  bool
	format string
}

func (a *app) gpuLsCommand() *cobra.Command {
	o := &gpuLsOptions{}
	cmd := &cobra.Command{
		Use:   "ls [flags]",
		Short: "List the GPUs of this host, and who has them",
		Long: `List the GPUs of this host and, of those that are divided, their slices: where they are, what they are, how busy they
are, and who has them: a task of berth, a process that has opened the GPU, or nobody; or why they are not lent. Only
root sees what processes of other users have open; who does not is told so. Index is the place in the
vendor's own order; the minor number is that of the node in /dev, which need not be the index. GPUs that are there
and cannot be used are told on standard error, with what to do.

A GPU in quarantine has reported an error from which it does not recover by itself, in the kernel's log, or its driver says that
it is in such a state: lost, to be reset, with memory that cannot be mended. Tasks do not get it until
berth gpu release; the same state alone does not bring it back there.

What NVIDIA's driver files do not tell (memory, use, errors, the UUIDs of MIG slices) comes from its management library, which
only a berth that was built with cgo can ask.

With --format json, it is a list with an object for each GPU. With --watch, the list is printed again at each change,
until berth is interrupted; as JSON, each list is one line.`,
		Example: `  berth gpu ls
  berth gpu ls --format json | jq '.[] | select(.held_by == []) | .uuid'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.gpuLs(cmd.Context(), o) },
	}
	cmd.Flags().BoolVar(&o.watch, "watch", false, "go on, with the list at each change")
	rootFlag(cmd, &o.root)
	formatFlag(cmd, &o.format)
	return cmd
}

// gpuLine is what ls tells of a GPU.
type gpuLine struct {
	device.Device
	Use        device.Use     `json:"use"`
	HeldBy     []gpuHolder    `json:"held_by"`
	Unseen     bool           `json:"unseen,omitempty"` // whether processes of other users have it open could not be seen
	Quarantine []device.Fault `json:"quarantine"`       // why it, or a slice of it, is not lent
}

// gpuHolder is who has a GPU, or a slice or share of it: a task, or a process that is no task's.
type gpuHolder struct {
	UUID    string          `json:"uuid"` // of the GPU or slice
	Task    string          `json:"task,omitempty"`
	Process *device.Process `json:"process,omitempty"`
}

func (a *app) gpuLs(ctx context.Context, o *gpuLsOptions) error {
	ctx, stop := notify(ctx)
	defer stop()
	h, err := a.openHost(o.root)
	if err != nil {
		return err
	}
	var last []byte
	for {
		lines, notes, err := a.gpuLines(ctx, h)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		if err := printGPUs(&out, lines, o); err != nil {
			return err
		}
		if !bytes.Equal(out.Bytes(), last) {
			last = out.Bytes()
			for _, note := range notes {
				a.say("%s", note)
			}
			if _, err := a.out.Write(last); err != nil {
				return err
			}
		}
		if !o.watch {
			return nil
		}
		if sleep(ctx, 2*time.Second) != nil {
			return nil // whoever watches ends it so
		}
	}
}

// gpuLines finds the GPUs of a host and who has them. The notes say what could not be found.
func (a *app) gpuLines(ctx context.Context, h *device.Host) (lines []gpuLine, notes []string, err error) {
	g, err := a.findGPUs(ctx, h)
	if err != nil {
		return nil, nil, err
	}
	notes = g.notes()
	held, err := a.gpuHolders(ctx, g)
	if err != nil {
		return nil, nil, err
	}
	unseen := os.Geteuid() != 0 && !g.Recorded()
	if unseen && len(g.devices) > 0 {
		notes = append(notes, "processes of other users that have a GPU open are not seen; run berth as root")
	}
	faults, unnoted, err := a.faults(g)
	if err != nil {
		return nil, nil, err
	}
	if unnoted != nil {
		notes = append(notes, fmt.Sprintf("faults of GPUs could not be noted, so tasks may get them: %v", unnoted))
	}
	uses, err := device.Within(ctx, a.patience, "a driver of GPUs", func() (all []device.Use, err error) {
		for _, d := range g.devices {
			all = append(all, g.use(d))
		}
		return all, nil
	})
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	lines = []gpuLine{}
	for i, d := range g.devices {
		use := device.Use{}
		if err != nil {
			use.Unknown = err.Error()
		} else {
			use = uses[i]
		}
		line := gpuLine{Device: d, Use: use, HeldBy: []gpuHolder{}, Unseen: unseen, Quarantine: []device.Fault{}}
		for _, u := range append(device.Units([]device.Device{d}), device.Unit{Device: d}) {
			if f, ok := device.FaultOf(faults, u); ok && !slices.Contains(line.Quarantine, f) {
				line.Quarantine = append(line.Quarantine, f)
			}
		}
		for _, u := range device.Units([]device.Device{d}) {
			line.HeldBy = append(line.HeldBy, held[u.Key()]...)
		}
		lines = append(lines, line)
	}
	return lines, notes, nil
}

// gpuHolders finds who has which GPU or slice, by its key: the tasks to which it is lent, and processes that have
// it open and are no such task's. Nobody has those of a recorded host.
func (a *app) gpuHolders(ctx context.Context, g gpus) (map[string][]gpuHolder, error) {
	held := map[string][]gpuHolder{}
	if g.Recorded() {
		return held, nil
	}
	pool, l, err := a.poolOf(g, "/"+hookName) // nothing is injected
	if err != nil {
		return nil, err
	}
	s, err := l.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	foreign, err := pool.Foreign(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range device.Units(g.devices) {
		var all []gpuHolder
		for id, t := range s.Devices {
			for _, task := range t.Tasks {
				if u.Is(id) {
					all = append(all, gpuHolder{UUID: u.UUID(), Task: task})
				}
			}
		}
		slices.SortFunc(all, func(a, b gpuHolder) int { return strings.Compare(a.Task, b.Task) })
		for _, p := range foreign[u.Key()] {
			all = append(all, gpuHolder{UUID: u.UUID(), Process: &p})
		}
		held[u.Key()] = all
	}
	return held, nil
}

// use says how busy a GPU is, where that can be read.
func (g gpus) use(d device.Device) device.Use {
	switch d.Vendor {
	case amd.Vendor:
		return amd.NewDriver(g.Host).Use(d)
	case intel.Vendor:
		return intel.NewDriver(g.Host).Use(d)
	}
	gpu := g.facts.GPU(d.UUID)
	switch {
	case gpu != nil && gpu.Busy == nil && gpu.MIG:
		return device.Use{Memory: &gpu.Used, Unknown: "the driver does not tell how busy a divided GPU is"}
	case gpu != nil:
		return device.Use{Busy: gpu.Busy, Memory: &gpu.Used}
	case g.facts == nil && !nvml.Built && g.Root() == "/":
		return device.Use{Unknown: "this berth was built without cgo, and cannot ask NVIDIA's management library"}
	}
	return device.Use{Unknown: "NVIDIA's management library did not tell it"}
}

func printGPUs(out *bytes.Buffer, lines []gpuLine, o *gpuLsOptions) error {
	if o.format == "json" {
		enc := jsonEncoder(out)
		if !o.watch {
			enc.SetIndent("", "  ")
		}
		return enc.Encode(lines)
	}
	if len(lines) == 0 {
		_, err := fmt.Fprintln(out, "This host has no GPUs that could be lent.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "GPU\tUUID\tPCI\tMINOR\tMODEL\tMEMORY\tDRIVER\tCUDA\tNUMA\tBUSY\tHELD BY")
	for _, l := range lines {
		row := []string{
			fmt.Sprintf("%s %d", l.Vendor, l.Index), l.UUID, dash(l.PCI), known(l.Minor), dash(l.Model), memoryOf(l.Memory), dash(l.Driver),
			dash(l.CUDA), known(l.NUMA), busy(l.Use), l.heldBy(l.UUID),
		}
		_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
		for i, s := range l.Slices {
			key := device.Unit{Device: l.Device, Slice: &l.Slices[i]}.Key()
			row := []string{fmt.Sprintf("%s %d:%d", l.Vendor, l.Index, s.Index), s.UUID, "", "", s.Profile, memoryOf(s.Memory), "", "", "", "", l.heldBy(s.UUID, key)}
			_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
		}
	}
	return w.Flush()
}

// heldBy says who has the GPU or the slice with a UUID, which may be noted by other names too. A GPU that is divided is held
// by nobody: its slices are.
func (l gpuLine) heldBy(uuid string, names ...string) string {
	var who []string
	for _, h := range l.HeldBy {
		switch {
		case h.UUID != uuid:
		case h.Process != nil:
			who = append(who, h.Process.String())
		default:
			who = append(who, "task "+h.Task)
		}
	}
	slices.Sort(who)
	who = slices.Compact(who)
	for _, f := range l.Quarantine {
		if f.UUID == uuid || slices.Contains(names, f.UUID) {
			who = append(who, "quarantine: "+f.String())
		}
	}
	if who == nil && uuid == l.UUID && len(l.Slices) > 0 {
		return "(divided)"
	}
	if who == nil && uuid == l.UUID && l.MIG {
		return "(in MIG mode, without slices)"
	}
	if who == nil && l.Unseen {
		return "(other users' processes not seen)"
	}
	return dash(strings.Join(who, ", "))
}

// known is a number, or a dash where it is -1.
func known(n int) string {
	if n < 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func memoryOf(n int64) string {
	if n == 0 {
		return "-"
	}
	return bytesOf(n)
}

func busy(u device.Use) string {
	var says []string
	if u.Busy != nil {
		says = append(says, fmt.Sprintf("%d%%", *u.Busy))
	}
	if u.Memory != nil {
		says = append(says, bytesOf(*u.Memory))
	}
	return dash(strings.Join(says, ", "))
}
