package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/device/nvidia/nvml"
)

// nodes are the device nodes that containers may get.
var nodes = []string{
	"/dev/null", "/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/nvidia-caps-imex-channels/*", "/dev/dri/card*", "/dev/dri/renderD*",
	"/dev/kfd", "/dev/mei*", "/dev/vfio/*", "/dev/vfio/devices/*", "/dev/gdrdrv", "/dev/infiniband/*",
}

// files are what is read of drivers, beneath every host.
var files = []string{
	"/proc/devices", "/proc/driver/nvidia/version", "/proc/driver/nvidia-caps/mig-minors",
	"/proc/driver/nvidia/capabilities/mig/*", "/proc/driver/nvidia/capabilities/gpu*/mig/gi*/access", "/proc/driver/nvidia/capabilities/gpu*/mig/gi*/ci*/access",
	"/sys/module/amdgpu/version", "/sys/module/i915/version", "/sys/module/xe/version", "/sys/module/firmware_class/parameters/path",
	"/sys/class/kfd/kfd/topology/nodes/*/properties", "/sys/class/kfd/kfd/topology/nodes/*/mem_banks/*/properties",
	"/sys/class/kfd/kfd/topology/nodes/*/io_links/*/properties",
	"/dev/dri/by-path/*",
}

// gpuDirs are the directories of GPUs in /sys, and ofGPU what is read beneath each.
var (
	gpuDirs = []string{"/sys/bus/pci/devices/*", "/sys/module/amdgpu/drivers/pci:amdgpu/*", "/sys/devices/platform/amdgpu_xcp_*"}
	ofGPU   = []string{
		"class", "vendor", "device", "numa_node", "driver", "iommu_group", "product_name", "mem_info_vram_total", "mem_info_vram_used",
		"gpu_busy_percent", "current_compute_partition", "current_memory_partition", "gpu_health", "drm/*/dev", "drm/*/lmem_total_bytes",
		"tile*/physical_vram_size_bytes",
		"mei/*/dev", "*mei*/mei/*/dev", "vfio-dev/*/dev",
	}
)

// Write records a host in a directory, which must be empty or not be there. facts are what NVIDIA's management
// library says; nil if nobody could ask it.
func Write(h *device.Host, facts *nvml.Facts, dir string) (err error) {
	entries, err := os.ReadDir(dir)
	switch {
	case err == nil && len(entries) > 0:
		return fmt.Errorf("record %s: %w: it is not empty", dir, berth.ErrConflict)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("record %s: %w: %w", dir, berth.ErrInvalid, err)
	}
	r := &recorder{host: h, dir: dir}
	if err := r.all(facts); err != nil {
		return fmt.Errorf("record %s: %w", dir, err)
	}
	return nil
}

// recorder writes beneath a directory.
type recorder struct {
	host *device.Host
	dir  string
}

func (r *recorder) all(facts *nvml.Facts) error {
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	if err := r.nodes(); err != nil {
		return err
	}
	if err := r.each(files, r.text); err != nil {
		return err
	}
	if err := r.each([]string{"/proc/driver/nvidia/gpus/*/information"}, r.information); err != nil {
		return err
	}
	if err := r.gpus(); err != nil {
		return err
	}
	if err := r.driver(); err != nil {
		return err
	}
	if facts == nil {
		return nil
	}
	data, err := json.MarshalIndent(facts, "", "  ")
	if err != nil {
		return err
	}
	return r.put("/"+nvml.File, append(data, '\n'))
}

// nodes lists the device nodes.
func (r *recorder) nodes() error {
	var list bytes.Buffer
	list.WriteString("# recorded device nodes: type, major and minor, mode, owner and group, path\n")
	for _, pattern := range nodes {
		for _, name := range r.host.Glob(pattern) {
			if n, err := r.host.Node(name); err == nil {
				fmt.Fprintln(&list, n)
			}
		}
	}
	return r.put("/"+device.NodeList, list.Bytes())
}

func (r *recorder) each(patterns []string, record func(name string) error) error {
	for _, pattern := range patterns {
		for _, name := range r.host.Glob(pattern) {
			if err := record(name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// gpus records the directories in /sys of devices that display or compute.
func (r *recorder) gpus() error {
	return r.each(gpuDirs, func(dir string) error {
		class, _ := r.host.ReadFile(dir + "/class")
		if strings.HasPrefix(dir, "/sys/bus/pci/") && !bytes.HasPrefix(class, []byte("0x03")) && !bytes.HasPrefix(class, []byte("0x12")) {
			return nil
		}
		for _, pattern := range ofGPU {
			if err := r.each([]string{dir + "/" + pattern}, r.text); err != nil {
				return err
			}
		}
		return nil
	})
}

// information records of what NVIDIA's driver says of a GPU that which berth reads.
func (r *recorder) information(name string) error {
	data, err := r.host.ReadFile(name)
	if err != nil {
		return err
	}
	i := nvidia.ParseInformation(string(data))
	excluded := "No"
	if i.Excluded {
		excluded = "Yes"
	}
	at, err := r.way(name)
	if err != nil {
		return err
	}
	return r.put(at, fmt.Appendf(nil, "Model: \t\t %s\nGPU UUID: \t %s\nBus Location: \t %s\nDevice Minor: \t %s\nGPU Excluded:\t %s\n", i.Model, i.UUID, i.Bus, i.Minor, excluded))
}

// text records a file of /proc or /sys with what it says, or a link. A file that cannot be read is as good as none:
// many of /sys exist for some devices alone.
func (r *recorder) text(name string) error {
	at, err := r.way(name)
	if err != nil || at == "" {
		return err
	}
	st, err := r.host.Stat(name)
	if err != nil || !st.Mode().IsRegular() {
		return nil //nolint:nilerr // what a link leads to counts for nothing
	}
	data, err := r.host.ReadFile(name)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	return r.put(at, data)
}

// way makes the directories and links that lead to a path, and returns where that is; "" if it is itself a link.
func (r *recorder) way(name string) (string, error) {
	done, parts := "/", strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	for links := 0; len(parts) > 0; {
		next := path.Join(done, parts[0])
		parts = parts[1:]
		target, err := r.host.Readlink(next)
		if err != nil {
			if done = next; len(parts) > 0 {
				if err := os.MkdirAll(r.at(done), 0o755); err != nil {
					return "", err
				}
			}
			continue
		}
		if links++; links > 40 {
			return "", unix.ELOOP
		}
		if err := r.link(next, target); err != nil {
			return "", err
		}
		if len(parts) == 0 {
			return "", nil
		}
		if !path.IsAbs(target) {
			target = path.Join(done, target)
		}
		done, parts = "/", append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), parts...)
	}
	return done, nil
}

func (r *recorder) at(name string) string { return filepath.Join(r.dir, name) }

func (r *recorder) link(name, target string) error {
	if err := os.MkdirAll(filepath.Dir(r.at(name)), 0o755); err != nil {
		return err
	}
	err := os.Symlink(target, r.at(name))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (r *recorder) put(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(r.at(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(r.at(name), data, 0o644)
}

// driver records the names of the files of NVIDIA's driver, and those of its libraries' links.
func (r *recorder) driver() error {
	files, linker := nvidia.DriverFiles(r.host)
	for _, name := range files {
		if err := r.name(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, dir := range linker {
		if _, err := r.way(dir); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	if linker == nil {
		return nil
	}
	// In place of the linker's configuration, which names directories of others too.
	return r.put("/etc/ld.so.conf", []byte(strings.Join(linker, "\n")+"\n"))
}

// name records that there is a file, directory, socket or link.
func (r *recorder) name(name string) error {
	at, err := r.way(name)
	if err != nil || at == "" {
		return err
	}
	st, err := r.host.Stat(name)
	switch {
	case err != nil:
		return nil //nolint:nilerr // it has gone meanwhile
	case st.IsDir():
		return os.MkdirAll(r.at(at), 0o755)
	case st.Mode()&fs.ModeSocket != 0:
		return unix.Mknod(r.at(at), unix.S_IFSOCK|0o644, 0)
	}
	return r.put(at, library(r.host, name))
}
