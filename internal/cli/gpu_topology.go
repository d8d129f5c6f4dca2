package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
)

type gpuTopologyOptions struct{ root, format string }

func (a *app) gpuTopologyCommand() *cobra.Command {
	o := &gpuTopologyOptions{}
	cmd := &cobra.Command{
		Use:   "topology [flags]",
		Short: "Tell how GPUs reach each other and the machine's memory",
		Long: `Tell how GPUs reach each other, as a matrix of the nearest way of each two, and to which PCI root and NUMA node they
belong:

  NV4     by 4 NVLinks, to each other or to a common switch       XGMI    by AMD's links
  PART    they are partitions of one GPU
  PIX     through one PCI switch at most                          PXB     through several PCI switches
  PHB     through the bridge of the processor                     NODE    through bridges of one NUMA node
  SYS     through the link between NUMA nodes                     ?       not known

NVLinks are known where NVIDIA's management library can be asked, by a berth that was built with cgo. With --format json,
it is an object with the lists gpus and pairs.`,
		Example: "  berth gpu topology",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.gpuTopology(cmd.Context(), o) },
	}
	rootFlag(cmd, &o.root)
	formatFlag(cmd, &o.format)
	return cmd
}

func (a *app) gpuTopology(ctx context.Context, o *gpuTopologyOptions) error {
	ctx, stop := notify(ctx)
	defer stop()
	h, err := a.openHost(o.root)
	if err != nil {
		return err
	}
	g, err := a.findGPUs(ctx, h)
	if err != nil {
		return err
	}
	for _, note := range g.notes() {
		a.say("%s", note)
	}
	t, err := device.Within(ctx, a.patience, "a driver of GPUs", func() (device.Topology, error) { return device.FindTopology(h, g.devices, g.links), nil })
	if err != nil {
		return err
	}
	if o.format == "json" {
		enc := jsonEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(t)
	}
	_, err = a.out.Write(matrix(t))
	return err
}

// links says how two GPUs reach each other by links of their own.
func (g gpus) links(a, b device.Device) device.Nearness {
	if n := g.facts.NVLinks(a, b); n > 0 {
		return device.Nearness(fmt.Sprintf("NV%d", n))
	}
	if a.Vendor == amd.Vendor && b.Vendor == amd.Vendor && a.Island != "" && a.Island == b.Island && a.PCI != b.PCI {
		return "XGMI"
	}
	return ""
}

// matrix is a topology in words.
func matrix(t device.Topology) []byte {
	var out bytes.Buffer
	if len(t.Devices) == 0 {
		out.WriteString("This host has no GPUs that could be lent.\n")
		return out.Bytes()
	}
	w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	head := []string{"GPU"}
	for _, d := range t.Devices {
		head = append(head, fmt.Sprintf("%s %d", d.Vendor, d.Index))
	}
	_, _ = fmt.Fprintln(w, strings.Join(append(head, "PCI", "ROOT", "NUMA"), "\t"))
	for i, d := range t.Devices {
		row := []string{head[i+1]}
		for _, o := range t.Devices {
			near := string(t.Near(d.UUID, o.UUID))
			if o.UUID == d.UUID {
				near = "X"
			}
			row = append(row, near)
		}
		_, _ = fmt.Fprintln(w, strings.Join(append(row, dash(d.PCI), dash(d.Root), known(d.NUMA)), "\t"))
	}
	_ = w.Flush() // to memory
	return out.Bytes()
}
