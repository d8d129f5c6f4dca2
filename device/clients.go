package device

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Tree returns a process and all those below it, as /proc tells of them; proc is that directory.
func Tree(proc string, root int) []int {
	all := []int{root}
	for i := 0; i < len(all); i++ { // it grows
		lists, _ := filepath.Glob(fmt.Sprintf("%s/%d/task/*/children", proc, all[i]))
		for _, list := range lists {
			data, err := os.ReadFile(list)
			if err != nil {
				continue // it has ended
			}
			for field := range strings.FieldsSeq(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil {
					all = append(all, pid)
				}
			}
		}
	}
	return all
}

// Clients are what processes have of one GPU, as its kernel driver tells of each descriptor by which they have opened it.
type Clients struct {
	Seen    bool             // the driver tells of any
	Memory  *int64           // bytes of the GPU's own; nil where the driver tells of none
	Engines map[string]int64 // nanoseconds, or cycles, in which each kind of engine has worked for them
	Total   map[string]int64 // cycles that have passed, of engines that count them
}

// FindClients looks at the descriptors of processes for those of the GPU with a PCI address.
func FindClients(proc string, pids []int, pci string) Clients {
	found := Clients{Engines: map[string]int64{}, Total: map[string]int64{}}
	seen := map[string]bool{} // a client has many descriptors
	for _, pid := range pids {
		files, _ := filepath.Glob(fmt.Sprintf("%s/%d/fdinfo/*", proc, pid))
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil || !bytes.Contains(data, []byte("drm-pdev:\t"+pci)) {
				continue
			}
			found.Seen = true
			found.add(data, seen)
		}
	}
	return found
}

func (c *Clients) add(data []byte, seen map[string]bool) {
	values := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok {
			values[key] = strings.TrimSpace(value)
		}
	}
	if id := values["drm-client-id"]; seen[id] {
		return
	} else {
		seen[id] = true
	}
	memory := int64(-1)
	for key, value := range values {
		switch {
		case strings.HasPrefix(key, "drm-resident-vram"):
			memory = max(memory, 0) + size(value)
		case strings.HasPrefix(key, "drm-engine-capacity-"):
		case strings.HasPrefix(key, "drm-engine-"):
			c.Engines[strings.TrimPrefix(key, "drm-engine-")] += number(value)
		case strings.HasPrefix(key, "drm-total-cycles-"):
			name := strings.TrimPrefix(key, "drm-total-cycles-")
			c.Total[name] = max(c.Total[name], number(value))
		case strings.HasPrefix(key, "drm-cycles-"):
			c.Engines[strings.TrimPrefix(key, "drm-cycles-")] += number(value)
		}
	}
	if memory >= 0 {
		if c.Memory == nil {
			c.Memory = new(int64)
		}
		*c.Memory += memory
	}
}

func number(text string) int64 {
	first, _, _ := strings.Cut(text, " ")
	n, _ := strconv.ParseInt(first, 10, 64)
	return n
}

// size reads "4096 KiB"; without a unit it is bytes.
func size(text string) int64 {
	n := number(text)
	switch {
	case strings.HasSuffix(text, " KiB"):
		n <<= 10
	case strings.HasSuffix(text, " MiB"):
		n <<= 20
	}
	return n
}

// Power reads what a GPU's driver tells its hardware monitor, below the directory of the PCI device: a counter of joules,
// or where there is none, watts; nil where there is neither.
func (h *Host) Power(dir string) (energy, power *float64) {
	const micro = 1e6
	for _, m := range h.Glob(dir + "/hwmon/hwmon*") {
		for _, name := range []string{"energy1_input", "energy2_input"} {
			if v, ok := h.number(m + "/" + name); ok {
				v /= micro
				return &v, nil
			}
		}
		for _, name := range []string{"power1_average", "power1_input"} {
			if v, ok := h.number(m + "/" + name); ok {
				v /= micro
				return nil, &v
			}
		}
	}
	return nil, nil
}

func (h *Host) number(name string) (float64, bool) {
	data, err := h.ReadFile(name)
	if err != nil {
		return 0, false
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(string(data)), 64)
	return v, err == nil
}
