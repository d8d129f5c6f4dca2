package cli

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/meter"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/device/nvidia/nvml"
	"github.com/berth-project/berth/runner"
)

// gpuMeter measures lent GPUs in a process that runs gpuMeterCommand.
type gpuMeter struct {
	*app
	dir string
}

var _ runner.Meter = gpuMeter{}

// share is what comes before the UUID of a GPU of which a task has a share.
const share = "share:"

// Start starts the process.
func (m gpuMeter) Start(file string, pid int, grants []berth.Grant) error {
	command := []string{self, "--data-dir", m.dir, "--gpu-root", m.global.gpuRoot, "gpu", "meter", strconv.Itoa(pid)}
	for _, g := range grants {
		uuid := g.UUID
		if g.Memory > 0 {
			uuid = share + uuid
		}
		command = append(command, uuid)
	}
	return meter.Start(file, command, m.env)
}

// Read reads what it has measured.
func (gpuMeter) Read(ctx context.Context, file string, patience time.Duration, grants []berth.Grant) []berth.GPUUse {
	var uuids []string
	for _, g := range grants {
		uuids = append(uuids, g.UUID)
	}
	return meter.Read(ctx, file, uuids, patience)
}

// meterLate is how long after its step's end a process that measures may still be there.
const meterLate = 30 * time.Second

// gpuMeterCommand measures GPUs until a process has ended.
func (a *app) gpuMeterCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "meter PID GPU...",
		Hidden: true,
		Args:   argCount(2, -1),
		RunE:   func(cmd *cobra.Command, args []string) error { return a.gpuMeter(cmd.Context(), args[0], args[1:]) },
	}
}

func (a *app) gpuMeter(ctx context.Context, process string, of []string) error {
	pid, err := strconv.Atoi(process)
	if err != nil {
		return invalid("gpu meter: %q is no process", process)
	}
	h, err := a.openHost("/")
	if err != nil {
		return err
	}
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	m := &meter.Meter{File: os.NewFile(meter.FD, "use"), Gauges: map[string]device.Gauge{}}
	// Drivers can take longer to find their devices than the step runs, or for ever.
	if m.End, err = meter.EndOf(pid); err != nil {
		return err
	}
	go func() {
		<-m.End
		time.Sleep(meterLate)
		os.Exit(exitOwn)
	}()
	units := map[string]device.Unit{}
	for _, v := range injectors(h, filepath.Join(dir, "gpu"), hookHere) {
		devices, _ := device.Ask(ctx, v, a.patience) // those that can be used; others were not lent
		for _, u := range device.Units(devices) {
			units[u.UUID()], units[u.Key()] = u, u
		}
	}
	library := sync.OnceValue(func() *nvml.Gauges { return nvml.OpenGauges(h) })
	for _, uuid := range of {
		uuid, shared := strings.CutPrefix(uuid, share)
		m.Order = append(m.Order, uuid)
		u, ok := units[uuid]
		if !ok {
			m.Gauges[uuid] = device.Deaf("it is not there any more")
			continue
		}
		gauged := device.Gauged{Unit: u, Shared: shared, PID: pid}
		switch u.Device.Vendor {
		case nvidia.Vendor:
			m.Gauges[uuid] = library().Gauge(gauged)
		case amd.Vendor:
			m.Gauges[uuid] = amd.NewDriver(h).Gauge(gauged)
		case intel.Vendor:
			m.Gauges[uuid] = intel.NewDriver(h).Gauge(gauged)
		}
	}
	select {
	case <-m.End:
		return nil // what is read now may be another step's use
	default:
	}
	return m.Run(pid)
}
