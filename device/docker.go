package device

import (
	"encoding/csv"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// DockerRequest is a device request in the terms of Docker's API.
type DockerRequest struct {
	Driver       string            `json:"Driver,omitempty"`
	Count        int               `json:"Count,omitempty"` // -1 is all
	DeviceIDs    []string          `json:"DeviceIDs,omitempty"`
	Capabilities [][]string        `json:"Capabilities,omitempty"` // one of the lists, all words of it
	Options      map[string]string `json:"Options,omitempty"`
}

// DockerMapping is a device node of the host in a container, in the terms of Docker's API.
type DockerMapping struct {
	Host        string `json:"PathOnHost"`
	Container   string `json:"PathInContainer"`
	Permissions string `json:"CgroupPermissions"`
}

// field is one field of a --gpus value.
type field struct {
	text       string
	key, value string
	bare       bool // no "=", so that key is a value
}

// fields reads a --gpus value: one record of comma-separated values. No key may be there twice.
func fields(value string) ([]field, error) {
	texts, err := record(value)
	if err != nil {
		return nil, fmt.Errorf("GPUs %q: %w: %w", value, berth.ErrInvalid, err)
	}
	all, seen := make([]field, len(texts)), map[string]bool{}
	for i, text := range texts {
		f := field{text: text}
		key, val, ok := strings.Cut(text, "=")
		f.key, f.value, f.bare = key, val, !ok
		if seen[key] && !strings.Contains(key, "/") { // CDI names of one kind are several
			return nil, fmt.Errorf("GPUs %q: %w: %q is there twice", value, berth.ErrInvalid, key)
		}
		seen[key] = true
		all[i] = f
	}
	return all, nil
}

// record reads one record of comma-separated values.
func record(value string) ([]string, error) {
	texts, err := csv.NewReader(strings.NewReader(value)).Read()
	if err == io.EOF {
		return nil, fmt.Errorf("it is empty")
	}
	return texts, err
}

// ParseDockerGPUs reads a value of docker run --gpus as docker does, with what surprises in it: unquoted,
// "device=0,1" is the device 0 and a count of 1, and of "count=2,1" the 1 counts. ParseRequest refuses these.
func ParseDockerGPUs(value string) (DockerRequest, error) {
	r, err := parseDocker(value, parseOptions)
	if err == nil && r.Capabilities == nil {
		r.Capabilities = [][]string{{"gpu"}}
	}
	return r, err
}

func parseDocker(value string, options func(string) (map[string]string, error)) (DockerRequest, error) {
	all, err := fields(value)
	if err != nil {
		return DockerRequest{}, err
	}
	r := DockerRequest{}
	counted := false
	for _, f := range all {
		if f.bare {
			f.key, f.value = "count", f.key
		}
		known, err := r.set(f, options)
		if err == nil && !known {
			err = fmt.Errorf("there is no key %q", f.key)
		}
		if err != nil {
			return DockerRequest{}, fmt.Errorf("GPUs %q: %w: %w", value, berth.ErrInvalid, err)
		}
		// Only a bare count keeps a later "count=" from being read; the reverse goes unnoticed there.
		if counted && f.key == "count" && !f.bare {
			return DockerRequest{}, fmt.Errorf("GPUs %q: %w: \"count\" is there twice", value, berth.ErrInvalid)
		}
		counted = counted || f.key == "count"
	}
	if !counted && r.DeviceIDs == nil {
		r.Count = 1
	}
	return r, nil
}

// set takes over one of docker's keys.
func (r *DockerRequest) set(f field, options func(string) (map[string]string, error)) (known bool, err error) {
	switch f.key {
	case "driver":
		r.Driver = f.value
	case "count":
		r.Count, err = parseCount(f.value)
	case "device":
		r.DeviceIDs = strings.Split(f.value, ",")
	case "capabilities":
		r.Capabilities = [][]string{append(strings.Split(f.value, ","), "gpu")}
	case "options":
		r.Options, err = options(f.value)
	default:
		return false, nil
	}
	return true, err
}

func parseCount(s string) (int, error) {
	if s == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no count; a count is a number, or \"all\"", s)
	}
	return n, nil
}

func parseOptions(s string) (map[string]string, error) {
	texts, err := record(s)
	if err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	options := map[string]string{}
	for _, text := range texts {
		key, value, _ := strings.Cut(text, "=")
		options[key] = value
	}
	return options, nil
}

// ParseDockerRun reads the values of docker run's --gpus and --device: what is asked of device drivers, and which
// nodes are mapped. All --device that are CDI names are one request to the driver "cdi", the last.
func ParseDockerRun(gpus, devices []string) ([]DockerRequest, []DockerMapping, error) {
	var requests []DockerRequest
	for _, value := range gpus {
		r, err := ParseDockerGPUs(value)
		if err != nil {
			return nil, nil, err
		}
		requests = append(requests, r)
	}
	var names []string
	var mappings []DockerMapping
	for _, value := range devices {
		if cdi.IsQualified(value) {
			names = append(names, value)
			continue
		}
		m, err := parseMapping(value)
		if err != nil {
			return nil, nil, fmt.Errorf("device %q: %w: %w", value, berth.ErrInvalid, err)
		}
		mappings = append(mappings, m)
	}
	if names != nil {
		requests = append(requests, DockerRequest{Driver: "cdi", DeviceIDs: names})
	}
	return requests, mappings, nil
}

// parseMapping reads HOST[:CONTAINER][:PERMISSIONS] as docker does.
func parseMapping(value string) (DockerMapping, error) {
	parts := strings.Split(value, ":")
	if len(parts) > 3 || parts[0] == "" {
		return DockerMapping{}, fmt.Errorf("write HOST[:CONTAINER][:PERMISSIONS], or a CDI name as in nvidia.com/gpu=0")
	}
	m := DockerMapping{Host: parts[0], Container: parts[0], Permissions: "rwm"}
	switch {
	case len(parts) == 1:
		m.Host = path.Clean(m.Host)
		m.Container = m.Host
	case len(parts) == 2 && isAccess(parts[1]):
		m.Host = path.Clean(m.Host)
		m.Container, m.Permissions = m.Host, parts[1]
	case len(parts) == 2:
		m.Container = path.Clean(parts[1])
	case !isAccess(parts[2]):
		return m, fmt.Errorf("the permissions %q are not letters of rwm, each once", parts[2])
	default:
		m.Container, m.Permissions = parts[1], parts[2]
	}
	if !path.IsAbs(m.Container) {
		return m, fmt.Errorf("%q is not an absolute path", m.Container)
	}
	return m, nil
}

func isAccess(s string) bool {
	for i, c := range s {
		if !strings.ContainsRune("rwm", c) || strings.ContainsRune(s[:i], c) {
			return false
		}
	}
	return s != ""
}

// ParseNerdctlGPUs reads a value of nerdctl run --gpus: docker's language for NVIDIA's devices alone, in which a
// count beside devices is refused at once, and options are not looked at.
func ParseNerdctlGPUs(value string) (DockerRequest, error) {
	r, err := parseDocker(value, func(string) (map[string]string, error) { return nil, nil })
	bad := func(what string) (DockerRequest, error) {
		return DockerRequest{}, fmt.Errorf("GPUs %q: %w: %s", value, berth.ErrInvalid, what)
	}
	switch {
	case err != nil:
		return r, err
	case r.Driver != "nvidia" && driverNamed(value):
		return bad("the only driver is nvidia")
	case r.Count != 0 && len(r.DeviceIDs) > 0:
		return bad("a count and devices; give one of them")
	}
	if r.Capabilities != nil { // a list of its own, without docker's "gpu"
		r.Capabilities[0] = r.Capabilities[0][:len(r.Capabilities[0])-1]
	}
	return r, nil
}

// driverNamed reports whether a --gpus value has the key driver, be it of nothing.
func driverNamed(value string) bool {
	all, err := fields(value)
	return err == nil && slices.ContainsFunc(all, func(f field) bool { return f.key == "driver" && !f.bare })
}

// gpuVendors are the vendors of CDI names that docker and podman look for, in this order.
var gpuVendors = []string{"nvidia.com", "amd.com"}

// FirstVendor finds the vendor whose devices docker and podman mean where none is named.
func FirstVendor(vendors []string) (string, error) {
	for _, v := range gpuVendors {
		if slices.Contains(vendors, v) {
			return v, nil
		}
	}
	return "", fmt.Errorf("CDI: %w: no spec is of a vendor of GPUs (%s)", berth.ErrNotFound, strings.Join(gpuVendors, ", "))
}

// PodmanGPUs turns values of podman run --gpus, which are ids, into CDI names; vendors are those of the specs.
func PodmanGPUs(gpus, vendors []string) ([]string, error) {
	if len(gpus) == 0 {
		return nil, nil
	}
	vendor, err := FirstVendor(vendors)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(gpus))
	for i, id := range gpus {
		names[i] = vendor + "/gpu=" + id
	}
	return names, nil
}
