package cli

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/device/nvidia/nvml"
	"github.com/berth-project/berth/ledger"
)

func (a *app) gpuCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gpu",
		Short: "Find GPUs, and tell who has them and how tasks get them",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.gpuLsCommand(), a.gpuExplainCommand(), a.gpuReleaseCommand(), a.gpuRecordCommand(), a.gpuTopologyCommand(), a.gpuNVMLCommand(), a.gpuMeterCommand())
	return cmd
}

// gpus are the GPUs of a host, of all vendors.
type gpus struct {
	*device.Host
	facts   *nvml.Facts // nil where nobody could be asked
	devices []device.Device
	// unusable says which are there and cannot be used; nil if all can. unfound are those of it that are of one vendor.
	unusable error
	unfound  map[string]error
}

// rootFlag adds --root.
func rootFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "root", "/", "root `DIR` of the host to look at: another root file system, or what berth gpu record wrote")
}

// openHost opens the host below a root directory: where none is named, the one whose GPUs are lent.
func (a *app) openHost(root string) (*device.Host, error) {
	if root == "/" {
		root = a.global.gpuRoot
	}
	if root != "/" {
		root = a.abs(root)
	}
	return device.OpenHost(root)
}

// asker asks NVIDIA's management library, in a process that runs gpuNVMLCommand.
func asker(h *device.Host) nvml.Asker {
	return nvml.Asker{Host: h, Command: []string{self, "gpu", "nvml"}}
}

// vendors find the devices of a host, those of each vendor. more adds to NVIDIA's what its library says.
func vendors(h *device.Host, more func(context.Context, []device.Device) ([]device.Device, error)) []device.Vendor {
	n := nvidia.NewDriver(h)
	n.More = more
	return []device.Vendor{n, amd.NewDriver(h), intel.NewDriver(h)}
}

// findGPUs finds the GPUs of a host. That some cannot be used, or a driver does not answer, is no error of its own.
func (a *app) findGPUs(ctx context.Context, h *device.Host) (gpus, error) {
	g := gpus{Host: h, unfound: map[string]error{}}
	facts := make(chan *nvml.Facts, 1) // who asked may have been left behind
	more := func(ctx context.Context, devices []device.Device) ([]device.Device, error) {
		said, err := asker(h).Facts(ctx)
		if err != nil || said == nil {
			return devices, err
		}
		facts <- said
		return said.Add(devices), nil
	}
	var errs []error
	for _, v := range vendors(h, more) {
		devices, err := device.Ask(ctx, v, a.patience)
		if ctx.Err() != nil {
			return g, context.Cause(ctx)
		}
		g.devices = append(g.devices, devices...)
		errs = append(errs, err)
		g.unfound[v.Name()] = err
	}
	select {
	case g.facts = <-facts:
	default:
	}
	if slices.ContainsFunc(g.devices, func(d device.Device) bool { return d.Vendor == nvidia.Vendor }) {
		_, err := device.Within(ctx, a.patience, "the driver of "+nvidia.Vendor, func() (any, error) { return nil, nvidia.NewDriver(h).CheckLibraries() })
		errs = append(errs, err)
	}
	g.unusable = errors.Join(errs...)
	return g, nil
}

// foundVendor is a vendor whose devices have been found already.
type foundVendor struct {
	device.Injector
	devices  []device.Device
	unusable error
}

// Devices returns the devices, and why others cannot be used.
func (v foundVendor) Devices(context.Context) ([]device.Device, error) { return v.devices, v.unusable }

// Require checks what images ask of the vendor's driver, if they do.
func (v foundVendor) Require(u device.Unit, env map[string]string) error {
	if r, ok := v.Injector.(device.Requirer); ok {
		return r.Require(u, env)
	}
	return nil
}

// poolOf is the pool that lends GPUs that have been found, with the ledger that says to whom they are lent.
func (a *app) poolOf(g gpus, hook string) (*device.Pool, *ledger.Ledger, error) {
	dir, err := a.dataDir()
	if err != nil {
		return nil, nil, err
	}
	l, err := ledger.New(ledger.Config{})
	if err != nil {
		return nil, nil, err
	}
	var found []device.Injector
	for _, v := range injectors(g.Host, filepath.Join(dir, "gpu"), func() (string, error) { return hook, nil }) {
		devices := slices.DeleteFunc(slices.Clone(g.devices), func(d device.Device) bool { return d.Vendor != v.Name() })
		found = append(found, foundVendor{v, devices, g.unfound[v.Name()]})
	}
	return a.newPool(g.Host, dir, l, found, nil), l, nil
}

// faults are why GPUs that have been found are in quarantine, by UUID. What their drivers tell now is noted, but not on
// a recorded host; the error says that it could not be.
func (a *app) faults(g gpus) (held map[string]device.Fault, unnoted, err error) {
	dir, err := a.dataDir()
	if err != nil {
		return nil, nil, err
	}
	q, found := device.QuarantineOf(g.Host, dir), device.FindFaults(g.Host, g.devices)
	if g.Recorded() {
		return q.See(found...), nil, nil
	}
	held, unnoted = q.Hold(found...)
	return held, unnoted, nil
}

// notes says of each GPU that cannot be used why, in one line.
func (g gpus) notes() (notes []string) {
	if g.unusable != nil {
		for line := range strings.Lines(g.unusable.Error()) {
			notes = append(notes, strings.TrimSpace(line))
		}
	}
	return notes
}

// gpuNVMLCommand answers for the process that asks NVIDIA's management library.
func (a *app) gpuNVMLCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "nvml",
		Hidden: true,
		Args:   noArgs,
		RunE: func(*cobra.Command, []string) error {
			h, err := device.OpenHost("/")
			if err != nil {
				return err
			}
			return nvml.Main(h, a.out)
		},
	}
}
