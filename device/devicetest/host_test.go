package devicetest_test

import (
	"testing"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/device/nvidia"
)

// The vendors' packages find on such a host what it says that it has, and can inject it.
func TestNew(t *testing.T) {
	for name, recorded := range map[string]bool{"recorded": true, "made": false} {
		t.Run(name, func(t *testing.T) {
			made := devicetest.New(t, devicetest.Options{NVIDIA: 4, AMD: 3, Recorded: recorded})
			h, err := device.OpenHost(made.Root)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range []struct {
				device.Vendor
				want []devicetest.GPU
			}{{nvidia.NewDriver(h), made.NVIDIA}, {amd.NewDriver(h), made.AMD}} {
				devices, err := v.Devices(t.Context())
				if err != nil || len(devices) != len(v.want) {
					t.Fatalf("%v, %v; want %v", devices, err, v.want)
				}
				for i, g := range v.want {
					if devices[i].UUID != g.UUID || devices[i].NUMA != i/2 {
						t.Errorf("%+v, want %+v", devices[i], g)
					}
					if n, err := h.Node(g.Node.Path); err != nil || n != g.Node {
						t.Errorf("%v, %v; want %v", n, err, g.Node)
					}
				}
			}
			devices, _ := nvidia.NewDriver(h).Devices(t.Context())
			spec, err := nvidia.Generator{Host: h, Hooks: nvidia.Hooks{Path: "/opt/berth-cdi-hook"}}.Spec(devices)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cdi.Marshal(spec); err != nil {
				t.Error(err)
			}
		})
	}
}

// Of a divided GPU the slices are found, each with a node of its own.
func TestNewDivided(t *testing.T) {
	made := devicetest.New(t, devicetest.Options{NVIDIA: 2, MIG: 3, Recorded: true})
	h, err := device.OpenHost(made.Root)
	if err != nil {
		t.Fatal(err)
	}
	devices, err := nvidia.NewDriver(h).Devices(t.Context())
	if err != nil || len(devices) != 2 || len(devices[0].Slices) != 3 || len(devices[1].Slices) != 0 {
		t.Fatalf("%+v, %v", devices, err)
	}
	for i, s := range made.NVIDIA[0].Slices {
		of := devices[0].Slices[i]
		node, err := nvidia.SliceNode(h, devices[0], of)
		if err != nil || node != s.Node.Path || of.UUID != s.UUID {
			t.Errorf("%+v has %s, %v; want %+v", of, node, err, s)
		}
		edits, err := nvidia.Generator{Host: h}.Slice(devices[0], of)
		if err != nil || len(edits.DeviceNodes) != 3 || edits.DeviceNodes[0].Path != made.NVIDIA[0].Node.Path || edits.DeviceNodes[1].Path != s.Cap.Path {
			t.Errorf("it brings %+v, %v", edits, err)
		}
	}
}
