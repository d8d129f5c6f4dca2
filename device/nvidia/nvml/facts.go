package nvml

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// File is the file of a recorded host that holds its Facts, in JSON.
const File = "nvml.json"

// Facts are what the library says of a host.
type Facts struct {
	Driver string `json:"driver"`
	CUDA   string `json:"cuda"` // the newest that the driver can run
	GPUs   []GPU  `json:"gpus"`
}

// GPU is what the library says of one GPU. What it does not say is zero.
type GPU struct {
	UUID   string `json:"uuid"`
	Memory int64  `json:"memory,omitempty"`  // bytes
	Arch   string `json:"arch,omitempty"`    // compute capability
	Brand  string `json:"brand,omitempty"`   // in the words of NVIDIA_REQUIRE_CUDA
	MIG    bool   `json:"mig,omitempty"`     // MIG mode is on, whether there are slices or not
	HasMIG bool   `json:"has_mig,omitempty"` // it has a MIG mode, on or off, as far as is known
	Slices []MIG  `json:"slices,omitempty"`
	Links  []Link `json:"nvlinks,omitempty"`

	// Fault is what keeps the GPU from being of use until somebody does something, "" is nothing; nil if unknown. Of one that
	// the driver has lost, this and its PCI address are all that is known.
	Fault *string `json:"fault,omitempty"`
	PCI   string  `json:"pci,omitempty"`

	Busy *int  `json:"busy_percent,omitempty"` // of the time since the driver looked last; nil if unknown
	Used int64 `json:"memory_used,omitempty"`  // bytes
}

// MIG is one MIG slice.
type MIG struct {
	UUID    string `json:"uuid"`
	Profile string `json:"profile,omitempty"`
	Memory  int64  `json:"memory,omitempty"` // bytes
	GI      int    `json:"gi"`
	CI      int    `json:"ci"`
}

// Link is a number of NVLinks to the same place.
type Link struct {
	To    string `json:"to"` // PCI address of a GPU, or "switch"
	Count int    `json:"count"`
}

// Switch is where NVLinks lead that end at a switch: all GPUs with such links reach each other.
const Switch = "switch"

// Read returns the facts of a recorded host; nil if it has none.
func Read(h *device.Host) (*Facts, error) {
	data, err := h.ReadFile(File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // recorded where the library did not answer
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", File, berth.ErrUnavailable, err)
	}
	return parse(data)
}

func parse(data []byte) (*Facts, error) {
	f := &Facts{}
	if err := json.Unmarshal(data, f); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", File, berth.ErrInvalid, err)
	}
	return f, nil
}

// GPU returns what is known of the GPU with a UUID; nil if there is no such GPU.
func (f *Facts) GPU(uuid string) *GPU {
	if f == nil {
		return nil
	}
	for i := range f.GPUs {
		if f.GPUs[i].UUID == uuid {
			return &f.GPUs[i]
		}
	}
	return nil
}

// lost is the fault of a GPU that the driver has lost, by its address; nil for others.
func (f *Facts) lost(pci string) *string {
	for _, gpu := range f.GPUs {
		if gpu.UUID == "" && gpu.PCI != "" && strings.EqualFold(gpu.PCI, pci) {
			return gpu.Fault
		}
	}
	return nil
}

// Add adds the facts to devices. What the driver's files say and the library does not stays; slices are taken
// to be the same by the numbers of their instances.
func (f *Facts) Add(devices []device.Device) []device.Device {
	all, islands := make([]device.Device, len(devices)), f.islands(devices)
	for i, d := range devices {
		all[i] = d
		gpu := f.GPU(d.UUID)
		if gpu == nil {
			all[i].Health = f.lost(d.PCI)
			continue
		}
		d.Health = gpu.Fault
		d.Island = islands[d.UUID]
		d.MIG, d.Divisible = gpu.MIG, gpu.HasMIG || gpu.MIG
		d.Memory, d.Arch, d.Brand = gpu.Memory, gpu.Arch, gpu.Brand
		if f.CUDA != "" {
			d.CUDA = f.CUDA
		}
		d.Slices = append([]device.Slice(nil), d.Slices...)
		for j, s := range d.Slices {
			for _, m := range gpu.Slices {
				if m.GI == s.GI && m.CI == s.CI {
					d.Slices[j].UUID, d.Slices[j].Profile, d.Slices[j].Memory = m.UUID, m.Profile, m.Memory
				}
			}
		}
		all[i] = d
	}
	return all
}

// islands returns the names of the islands of GPUs that have NVLinks to each other, or to a switch, by UUID: the UUID
// of the first GPU of each.
func (f *Facts) islands(devices []device.Device) map[string]string {
	of := map[string]string{} // PCI address or Switch: the island
	find := func(at string) string {
		for of[at] != "" && of[at] != at {
			at = of[at]
		}
		return at
	}
	names := map[string]string{}
	for _, d := range devices {
		gpu := f.GPU(d.UUID)
		if gpu == nil {
			continue
		}
		for _, l := range gpu.Links {
			if l.To != "" {
				of[find(strings.ToLower(l.To))] = find(d.PCI)
			}
		}
	}
	first := map[string]string{}
	for _, d := range devices {
		gpu := f.GPU(d.UUID)
		if gpu == nil || len(gpu.Links) == 0 {
			continue
		}
		root := find(d.PCI)
		if first[root] == "" {
			first[root] = d.UUID
		}
		names[d.UUID] = first[root]
	}
	return names
}

// NVLinks counts the NVLinks by which two GPUs reach each other, directly or by a switch; 0 if there are none.
func (f *Facts) NVLinks(a, b device.Device) int {
	x, y := f.GPU(a.UUID), f.GPU(b.UUID)
	if x == nil || y == nil {
		return 0
	}
	to := func(g *GPU, where string) int {
		for _, l := range g.Links {
			if strings.EqualFold(l.To, where) {
				return l.Count
			}
		}
		return 0
	}
	return max(to(x, b.PCI), to(y, a.PCI), min(to(x, Switch), to(y, Switch)))
}

// notHere is why GPUs of a host with another root are not measured: the library speaks of this machine's.
const notHere = "NVIDIA's management library tells of this machine alone, and the GPU is of a host with another root"
