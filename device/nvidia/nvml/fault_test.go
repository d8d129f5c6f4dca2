//go:build cgo

package nvml

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
)

// wants has a GPU's driver tell what is to be done with it.
func wants(action nvml.DeviceGpuRecoveryAction) func(*server.Device) {
	return func(d *server.Device) {
		d.GetFieldValuesFunc = func(values []nvml.FieldValue) nvml.Return {
			for i := range values {
				if values[i].FieldId != nvml.FI_DEV_GET_GPU_RECOVERY_ACTION {
					return nvml.ERROR_INVALID_ARGUMENT
				}
				binary.NativeEndian.PutUint32(values[i].Value[:], uint32(action))
			}
			return nvml.SUCCESS
		}
	}
}

// uncorrected has a GPU's driver count errors.
func uncorrected(volatile, aggregate uint64) func(*server.Device) {
	return func(d *server.Device) {
		d.GetTotalEccErrorsFunc = func(kind nvml.MemoryErrorType, counter nvml.EccCounterType) (uint64, nvml.Return) {
			switch {
			case kind != nvml.MEMORY_ERROR_TYPE_UNCORRECTED:
				return 1000, nvml.SUCCESS
			case counter == nvml.AGGREGATE_ECC:
				return aggregate, nvml.SUCCESS
			}
			return volatile, nvml.SUCCESS
		}
	}
}

func rows(pending, failed bool) func(*server.Device) {
	return func(d *server.Device) {
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 1, 2, pending, failed, nvml.SUCCESS }
	}
}

func answers(ret nvml.Return) func(*server.Device) {
	return func(d *server.Device) {
		d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, ret }
	}
}

func TestFaults(t *testing.T) {
	sram := func(d *server.Device) {
		d.GetSramEccErrorStatusFunc = func() (nvml.EccSramErrorStatus, nvml.Return) {
			return nvml.EccSramErrorStatus{BThresholdExceeded: 1}, nvml.SUCCESS
		}
	}
	for name, c := range map[string]struct {
		is   []func(*server.Device)
		want string
	}{
		"well":                            {nil, ""},
		"errors of its whole life":        {[]func(*server.Device){uncorrected(0, 7)}, ""},
		"errors":                          {[]func(*server.Device){uncorrected(3, 7)}, "3 volatile uncorrectable ECC errors"},
		"errors that the driver got over": {[]func(*server.Device){uncorrected(3, 7), wants(nvml.GPU_RECOVERY_ACTION_NONE)}, ""},
		"errors that it did not get over": {[]func(*server.Device){uncorrected(3, 7), wants(nvml.GPU_RECOVERY_ACTION_GPU_RESET)}, "recovery action: GPU reset"},
		"a recovery of a later driver":    {[]func(*server.Device){wants(99)}, "recovery action: 99"},
		"rows that wait":                  {[]func(*server.Device){rows(true, false)}, ""},
		"rows that could not be remapped": {[]func(*server.Device){rows(true, true)}, "row remapping failed"},
		"caches":                          {[]func(*server.Device){sram}, "SRAM error threshold exceeded"},
		"all at once": {
			[]func(*server.Device){rows(false, true), sram, wants(nvml.GPU_RECOVERY_ACTION_NODE_REBOOT)},
			"row remapping failed; SRAM error threshold exceeded; recovery action: node reboot",
		},
		"lost":        {[]func(*server.Device){answers(nvml.ERROR_GPU_IS_LOST)}, "GPU is lost"},
		"to be reset": {[]func(*server.Device){answers(nvml.ERROR_RESET_REQUIRED)}, "GPU requires a reset"},
	} {
		t.Run(name, func(t *testing.T) {
			s := dgxa100.New()
			complete(s)
			for _, f := range c.is {
				f(s.Devices[1].(*server.Device))
			}
			facts, err := query(s, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i, gpu := range facts.GPUs {
				if want := map[int]string{1: c.want}[i]; gpu.Fault == nil || *gpu.Fault != want {
					t.Errorf("%d: %v, want %q", i, gpu.Fault, want)
				}
			}
		})
	}
}

// A library that has not all functions is not asked for those, and one that tells nothing has nothing told of it.
func TestFaultUnknown(t *testing.T) {
	s := dgxa100.New()
	complete(s)
	s.ExtensionsFunc = func() nvml.ExtendedInterface {
		return &mock.ExtendedInterface{LookupSymbolFunc: func(string) error { return errors.New("undefined symbol") }}
	}
	d := s.Devices[0].(*server.Device)
	d.GetRemappedRowsFunc, d.GetSramEccErrorStatusFunc = nil, nil // the mock panics
	answers(nvml.ERROR_UNKNOWN)(d)
	facts, err := query(s, nil)
	if err != nil || facts.GPUs[0].Fault != nil || facts.GPUs[0].UUID == "" {
		t.Errorf("%+v, %v", facts.GPUs[0], err)
	}
}

// TestFaultNotToldNow: an answer that fails once neither makes a fault of errors that the driver got over, nor says that the GPU is
// well; that a driver has no such thing to tell is another matter.
func TestFaultNotToldNow(t *testing.T) {
	fields := func(whole, one nvml.Return) func(*server.Device) {
		return func(d *server.Device) {
			d.GetFieldValuesFunc = func(values []nvml.FieldValue) nvml.Return {
				values[0].NvmlReturn = uint32(one)
				return whole
			}
		}
	}
	remapped := func(ret nvml.Return) func(*server.Device) {
		return func(d *server.Device) {
			d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, ret }
		}
	}
	none, errors := wants(nvml.GPU_RECOVERY_ACTION_NONE), uncorrected(3, 3)
	for name, c := range map[string]struct {
		is   []func(*server.Device)
		want *string
	}{
		"no fields":                      {[]func(*server.Device){errors, fields(nvml.ERROR_TIMEOUT, nvml.SUCCESS)}, nil},
		"not this field":                 {[]func(*server.Device){errors, fields(nvml.SUCCESS, nvml.ERROR_UNKNOWN)}, nil},
		"a driver without fields":        {[]func(*server.Device){errors, fields(nvml.ERROR_FUNCTION_NOT_FOUND, nvml.SUCCESS)}, new("3 volatile uncorrectable ECC errors")},
		"a driver without this field":    {[]func(*server.Device){errors, fields(nvml.SUCCESS, nvml.ERROR_INVALID_ARGUMENT)}, new("3 volatile uncorrectable ECC errors")},
		"a GPU that has none":            {[]func(*server.Device){errors, fields(nvml.SUCCESS, nvml.ERROR_NOT_SUPPORTED)}, new("3 volatile uncorrectable ECC errors")},
		"lost meanwhile":                 {[]func(*server.Device){errors, fields(nvml.SUCCESS, nvml.ERROR_GPU_IS_LOST)}, new("GPU is lost")},
		"no rows":                        {[]func(*server.Device){none, remapped(nvml.ERROR_UNKNOWN)}, nil},
		"a GPU without rows":             {[]func(*server.Device){none, remapped(nvml.ERROR_NOT_SUPPORTED)}, new("")},
		"no rows, and something is told": {[]func(*server.Device){wants(nvml.GPU_RECOVERY_ACTION_GPU_RESET), remapped(nvml.ERROR_UNKNOWN)}, new("recovery action: GPU reset")},
	} {
		t.Run(name, func(t *testing.T) {
			s := dgxa100.New()
			complete(s)
			for _, f := range c.is {
				f(s.Devices[0].(*server.Device))
			}
			facts, err := query(s, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, facts.GPUs[0].Fault); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A GPU that the driver has lost is told by its address.
func TestLost(t *testing.T) {
	for name, lose := range map[string]func(*server.Server){
		"no handle": func(s *server.Server) {
			s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
				if i == 2 {
					return nil, nvml.ERROR_GPU_IS_LOST
				}
				return s.Devices[i], nvml.SUCCESS
			}
			s.DeviceGetHandleByPciBusIdFunc = func(pci string) (nvml.Device, nvml.Return) {
				if pci == "0000:03:00.0" {
					return nil, nvml.ERROR_GPU_IS_LOST
				}
				return s.Devices[0], nvml.SUCCESS
			}
		},
		"no UUID": func(s *server.Server) {
			s.Devices[2].(*server.Device).GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
			s.DeviceGetHandleByPciBusIdFunc = func(pci string) (nvml.Device, nvml.Return) {
				return s.Devices[map[string]int{"0000:03:00.0": 2}[pci]], nvml.SUCCESS
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := dgxa100.New()
			complete(s)
			lose(s)
			facts, err := query(s, []string{"0000:01:00.0", "0000:03:00.0"})
			if err != nil || len(facts.GPUs) != len(s.Devices) {
				t.Fatalf("%+v, %v", facts, err)
			}
			got := facts.Add([]device.Device{
				{UUID: facts.GPUs[0].UUID, PCI: "0000:01:00.0"}, {UUID: "GPU-lost", PCI: "0000:03:00.0"}, {UUID: "GPU-unknown", PCI: "0000:09:00.0"}, {UUID: "GPU-nowhere"},
			})
			var health []*string
			for _, d := range got {
				health = append(health, d.Health)
			}
			if diff := cmp.Diff([]*string{new(""), new("GPU is lost"), nil, nil}, health); diff != "" {
				t.Error(diff)
			}
		})
	}
}
