package device

import (
	"errors"
	"slices"
	"testing"

	"github.com/berth-project/berth"
)

// fourGPUs are a host with four GPUs, of which the last is divided.
func fourGPUs() []Device {
	return []Device{
		{Vendor: "nvidia", Index: 0, UUID: "GPU-aa000000", Model: "A100"},
		{Vendor: "nvidia", Index: 1, UUID: "GPU-ab000000", Model: "A100"},
		{Vendor: "nvidia", Index: 2, UUID: "GPU-b0000000", Model: "A100"},
		{Vendor: "nvidia", Index: 3, UUID: "GPU-c0000000", Model: "A100", Slices: []Slice{
			{Index: 0, UUID: "MIG-10000000", GI: 1}, {Index: 1, UUID: "MIG-20000000", GI: 2},
		}},
	}
}

func TestMaskAllows(t *testing.T) {
	all := func(Device) bool { return true }
	job := func(d Device) bool { return d.Index == 1 || d.Index == 2 } // what a job's cgroup lets through
	for _, c := range []struct {
		name    string
		env     map[string]string
		canOpen func(Device) bool
		want    []string // UUIDs of devices, or of slices where a device has some
		kind    error
	}{
		{"nothing is said", nil, nil, []string{"GPU-aa000000", "GPU-ab000000", "GPU-b0000000", "MIG-10000000", "MIG-20000000"}, nil},
		{"empty is none", map[string]string{"CUDA_VISIBLE_DEVICES": ""}, all, nil, nil},
		{"a job of Slurm without GPUs", map[string]string{"SLURM_JOB_ID": "7"}, all, nil, nil},
		{"Slurm's numbers are global", map[string]string{"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}, job, []string{"GPU-ab000000"}, nil},
		{"and are so without a look at nodes", map[string]string{"SLURM_JOB_GPUS": "2,1"}, nil, []string{"GPU-b0000000", "GPU-ab000000"}, nil},
		{"Slurm's numbers do not fit the nodes", map[string]string{"SLURM_JOB_GPUS": "0"}, job, nil, berth.ErrDenied},
		{"UUIDs come before Slurm's numbers", map[string]string{"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": "MIG-2"}, all, []string{"MIG-20000000"}, nil},
		{"a vendor's numbers count what can be opened", map[string]string{"CUDA_VISIBLE_DEVICES": "0"}, job, []string{"GPU-ab000000"}, nil},
		{"a vendor's numbers on a free host", map[string]string{"CUDA_VISIBLE_DEVICES": "2,0"}, all, []string{"GPU-b0000000", "GPU-aa000000"}, nil},
		{"a vendor's numbers, and no look at nodes", map[string]string{"CUDA_VISIBLE_DEVICES": "0"}, nil, nil, berth.ErrDenied},
		{"a number that is not there", map[string]string{"CUDA_VISIBLE_DEVICES": "2"}, job, nil, berth.ErrNotFound},
		{"the beginning of two UUIDs", map[string]string{"CUDA_VISIBLE_DEVICES": "GPU-a"}, all, nil, berth.ErrDenied},
		{"the beginning of one", map[string]string{"CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-b"}, all, []string{"GPU-aa000000", "GPU-b0000000"}, nil},
		{"two slices of one GPU", map[string]string{"CUDA_VISIBLE_DEVICES": "MIG-2,MIG-1"}, all, []string{"MIG-20000000", "MIG-10000000"}, nil},
		{"a slice by the numbers of its instances", map[string]string{"CUDA_VISIBLE_DEVICES": "MIG-GPU-c0000000/2/0"}, all, []string{"MIG-20000000"}, nil},
		{"another vendor's mask", map[string]string{"ROCR_VISIBLE_DEVICES": ""}, all, []string{"GPU-aa000000", "GPU-ab000000", "GPU-b0000000", "MIG-10000000", "MIG-20000000"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			devices := fourGPUs()
			var err error
			for _, m := range HostMasks(c.env) {
				if devices, err = m.Allow(devices, c.canOpen); err != nil {
					break
				}
			}
			if !errors.Is(err, c.kind) {
				t.Fatalf("error: %v", err)
			}
			if err != nil {
				return
			}
			var got []string
			for _, d := range devices {
				if d.Slices == nil {
					got = append(got, d.UUID)
				}
				for _, s := range d.Slices {
					got = append(got, s.UUID)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// CUDA counts the fastest device first unless it is told otherwise.
func TestMaskOfUnequalDevices(t *testing.T) {
	devices := fourGPUs()
	devices[2].Model = "H200"
	env := map[string]string{"CUDA_VISIBLE_DEVICES": "0"}
	all := func(Device) bool { return true }
	if got, err := HostMask(env).Allow(devices, all); !errors.Is(err, berth.ErrDenied) {
		t.Errorf("%v, %v", got, err)
	}
	env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
	if got, err := HostMask(env).Allow(devices, all); err != nil || got[0].UUID != "GPU-aa000000" {
		t.Errorf("%v, %v", got, err)
	}
}

// ROCm applies its own mask first, and HIP's to what that leaves.
func TestMasksOfAMD(t *testing.T) {
	var devices []Device
	for i, uuid := range []string{"GPU-a", "GPU-b", "GPU-c"} {
		devices = append(devices, Device{Vendor: "amd", Index: i, UUID: uuid})
	}
	for _, m := range HostMasks(map[string]string{"HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "1,2"}) {
		var err error
		if devices, err = m.Allow(devices, func(Device) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	if len(devices) != 1 || devices[0].UUID != "GPU-c" {
		t.Errorf("%v", devices)
	}
}

func TestVendorMasksBesideSlurm(t *testing.T) {
	m := HostMask(map[string]string{"ZE_AFFINITY_MASK": "1.0,1.1,0"})
	if m.Source != "ZE_AFFINITY_MASK" || m.Vendor != "intel" || !slices.Equal(m.IDs, []string{"1", "0"}) {
		t.Errorf("%+v", m)
	}
}

// Slurm's numbers count the GPUs of those vendors that it lends.
func TestMaskOfTwoVendors(t *testing.T) {
	nvidia := []Device{{Vendor: "nvidia", Index: 0, UUID: "n0", PCI: "0000:01:00.0"}, {Vendor: "nvidia", Index: 1, UUID: "n1", PCI: "0000:02:00.0"}}
	integrated := Device{Vendor: "intel", Index: 0, UUID: "i0", PCI: "0000:00:02.0"}
	amd := []Device{{Vendor: "amd", Index: 0, UUID: "a0", PCI: "0000:03:00.0"}, {Vendor: "amd", Index: 1, UUID: "a1", PCI: "0000:04:00.0"}}
	all := func(Device) bool { return true }
	for name, tt := range map[string]struct {
		devices []Device
		ids     string
		canOpen func(Device) bool
		want    []string
		kind    error
	}{
		"one is the processor's":            {append([]Device{integrated}, nvidia...), "1", all, []string{"n1"}, nil},
		"that alone":                        {[]Device{integrated}, "0", all, []string{"i0"}, nil},
		"the other's are kept from nobody":  {slices.Concat(nvidia, amd), "1", func(d Device) bool { return d.UUID != "n0" }, []string{"n1"}, nil},
		"nothing is kept from the job":      {slices.Concat(nvidia, amd), "1", all, nil, berth.ErrDenied},
		"both vendors' are kept":            {slices.Concat(nvidia, amd), "1", func(d Device) bool { return d.Index == 1 }, nil, berth.ErrDenied},
		"it cannot be looked at":            {slices.Concat(nvidia, amd), "1", nil, nil, berth.ErrDenied},
		"AMD's hidden ones may not count":   {amd, "3,5", all, []string{"a0", "a1"}, nil},
		"not as many as were lent":          {amd, "1,3,5", all, nil, berth.ErrNotFound},
		"of NVIDIA's every one is numbered": {nvidia, "1,5", all, nil, berth.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := HostMask(map[string]string{"SLURM_JOB_GPUS": tt.ids}).Allow(tt.devices, tt.canOpen)
			var uuids []string
			for _, d := range got {
				uuids = append(uuids, d.UUID)
			}
			if !errors.Is(err, tt.kind) || !slices.Equal(uuids, tt.want) {
				t.Errorf("%q, %v", uuids, err)
			}
		})
	}
}
