//go:build cgo

package nvml

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
)

// complete gives the GPUs of a mock host what they lack: use, NVLinks to switches, and that they are well, as a driver
// says it that tells no recovery action.
func complete(s *server.Server) {
	s.ExtensionsFunc = func() nvml.ExtendedInterface {
		return &mock.ExtendedInterface{LookupSymbolFunc: func(string) error { return nil }}
	}
	for _, d := range s.Devices {
		d := d.(*server.Device)
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 42}, nvml.SUCCESS }
		d.GetNvLinkStateFunc = func(i int) (nvml.EnableState, nvml.Return) {
			if i < 12 {
				return nvml.FEATURE_ENABLED, nvml.SUCCESS
			}
			return 0, nvml.ERROR_INVALID_ARGUMENT
		}
		d.GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) {
			return nvml.NVLINK_DEVICE_TYPE_SWITCH, nvml.SUCCESS
		}
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, nvml.SUCCESS }
		d.GetSramEccErrorStatusFunc = func() (nvml.EccSramErrorStatus, nvml.Return) {
			return nvml.EccSramErrorStatus{}, nvml.ERROR_NOT_SUPPORTED
		}
		d.GetFieldValuesFunc = func(values []nvml.FieldValue) nvml.Return {
			values[0].NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
			return nvml.SUCCESS
		}
		d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, nvml.SUCCESS }
	}
}

func TestQuery(t *testing.T) {
	for name, c := range map[string]struct {
		server *server.Server
		cuda   string
		gpu    GPU
	}{
		"a100": {dgxa100.New(), "12.4", GPU{Memory: 40960 << 20, Arch: "8.0", Brand: "Nvidia", HasMIG: true}},
		"h200": {dgxh200.New(), "12.4", GPU{Memory: 144384 << 20, Arch: "9.0", Brand: "Nvidia", HasMIG: true}},
	} {
		t.Run(name, func(t *testing.T) {
			complete(c.server)
			facts, err := query(c.server, nil)
			if err != nil || len(facts.GPUs) != 8 || facts.CUDA != c.cuda || facts.Driver != "550.54.15" {
				t.Fatalf("%+v, %v", facts, err)
			}
			busy := 42
			c.gpu.Busy, c.gpu.Links, c.gpu.Fault = &busy, []Link{{To: Switch, Count: 12}}, new("")
			for i, got := range facts.GPUs {
				if !strings.HasPrefix(got.UUID, "GPU-") {
					t.Errorf("%d: UUID %q", i, got.UUID)
				}
				got.UUID = ""
				if diff := cmp.Diff(c.gpu, got); diff != "" {
					t.Errorf("%d: %s", i, diff)
				}
			}
		})
	}
}

// The UUIDs and profiles of slices, which the driver's files do not tell; the places of slices that are not there
// are passed over.
func TestQueryMIG(t *testing.T) {
	s := dgxa100.New()
	complete(s)
	gpu := s.Devices[1].(*server.Device)
	gpu.MigMode = nvml.DEVICE_MIG_ENABLE
	gpu.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	sizes := []struct {
		gi, ci uint32
		mb     uint64
	}{{3, 3, 19968}, {1, 1, 4864}, {2, 1, 9856}}
	gpu.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i >= len(sizes) {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return &mock.Device{
			GetUUIDFunc:              func() (string, nvml.Return) { return fmt.Sprintf("MIG-%d", i), nvml.SUCCESS },
			GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return i + 1, nvml.SUCCESS },
			GetComputeInstanceIdFunc: func() (int, nvml.Return) { return 0, nvml.SUCCESS },
			GetAttributesFunc: func() (nvml.DeviceAttributes, nvml.Return) {
				return nvml.DeviceAttributes{GpuInstanceSliceCount: sizes[i].gi, ComputeInstanceSliceCount: sizes[i].ci, MemorySizeMB: sizes[i].mb}, nvml.SUCCESS
			},
		}, nvml.SUCCESS
	}
	facts, err := query(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []MIG{
		{UUID: "MIG-0", Profile: "3g.20gb", Memory: 19968 << 20, GI: 1},
		{UUID: "MIG-1", Profile: "1g.5gb", Memory: 4864 << 20, GI: 2},
		{UUID: "MIG-2", Profile: "1c.2g.10gb", Memory: 9856 << 20, GI: 3},
	}
	if diff := cmp.Diff(want, facts.GPUs[1].Slices); diff != "" || !facts.GPUs[1].MIG || facts.GPUs[1].Busy != nil {
		t.Error(diff, facts.GPUs[1])
	}
	have := []device.Device{{UUID: facts.GPUs[1].UUID, Model: "A100", Slices: []device.Slice{{UUID: "old", GI: 2}, {UUID: "new", GI: 9}}}}
	got := facts.Add(have)
	wantDevices := []device.Device{{
		UUID: have[0].UUID, Model: "A100", MIG: true, Divisible: true, Island: have[0].UUID, Memory: 40960 << 20, Arch: "8.0", Brand: "Nvidia", CUDA: "12.4", Health: new(""),
		Slices: []device.Slice{{UUID: "MIG-1", Profile: "1g.5gb", Memory: 4864 << 20, GI: 2}, {UUID: "new", GI: 9}},
	}}
	if diff := cmp.Diff(wantDevices, got); diff != "" || have[0].Slices[0].UUID != "old" {
		t.Error(diff)
	}
}

func TestLinksBetweenGPUs(t *testing.T) {
	s := dgxa100.New()
	complete(s)
	d := s.Devices[0].(*server.Device)
	d.GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	d.GetNvLinkRemotePciInfoFunc = func(i int) (nvml.PciInfo, nvml.Return) {
		var info nvml.PciInfo
		for j, c := range fmt.Sprintf("00000000:0%d:00.0", 7+i/8) {
			info.BusId[j] = int8(c)
		}
		return info, nvml.SUCCESS
	}
	facts, err := query(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Link{{"0000:07:00.0", 8}, {"0000:08:00.0", 4}}, facts.GPUs[0].Links); diff != "" {
		t.Error(diff)
	}
}

// That there is no library, or no driver, is an answer; that the driver fails is not.
func TestNoLibrary(t *testing.T) {
	for _, ret := range []nvml.Return{nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED} {
		s := dgxa100.New()
		s.InitFunc = func() nvml.Return { return ret }
		if facts, err := query(s, nil); facts != nil || err != nil {
			t.Errorf("%+v, %v", facts, err)
		}
	}
	s := dgxa100.New()
	s.InitFunc = func() nvml.Return { return nvml.ERROR_LIB_RM_VERSION_MISMATCH }
	if _, err := query(s, nil); err == nil || !strings.Contains(err.Error(), "reboot") {
		t.Error(err)
	}
}

// The real library, where there is one; on most machines the answer is that there is none.
func TestAnswer(t *testing.T) {
	h, err := device.OpenHost("/")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Main(h, &out); err != nil {
		t.Fatal(err)
	}
	var said answer
	if err := json.Unmarshal(out.Bytes(), &said); err != nil {
		t.Fatalf("%v: %q", err, out.String())
	}
}
