package nvidia

import (
	"bufio"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// Majors are the major numbers of NVIDIA's device nodes by the names of /proc/devices.
type Majors map[string]uint32

// ParseMajors reads /proc/devices. It is an error if NVIDIA's driver has nothing there.
func ParseMajors(text string) (Majors, error) {
	majors := Majors{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "nvidia") {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimPrefix(fields[0], "+"), 10, 32); err == nil {
			majors[fields[1]] = uint32(n)
		}
	}
	if len(majors) == 0 {
		return nil, fmt.Errorf("/proc/devices: %w: nothing of NVIDIA's driver is there", berth.ErrNotFound)
	}
	return majors, nil
}

// GPU returns the major number of the nodes of GPUs, whose name changed with driver 550.40.
func (m Majors) GPU() (uint32, bool) {
	for _, name := range []string{"nvidia", "nvidia-frontend"} {
		if n, ok := m[name]; ok {
			return n, true
		}
	}
	return 0, false
}

// Information is what the driver says of one GPU in /proc/driver/nvidia/gpus/ADDRESS/information, as it is
// written there.
type Information struct {
	Model    string
	UUID     string
	Bus      string
	Minor    string
	Excluded bool // by the administrator: the driver lets nobody use it
}

// ParseInformation reads an information file.
func ParseInformation(text string) Information {
	var i Information
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch field {
		case "Model":
			i.Model = value
		case "GPU UUID":
			i.UUID = value
		case "Bus Location":
			i.Bus = value
		case "Device Minor":
			i.Minor = value
		case "GPU Excluded":
			i.Excluded = value == "Yes"
		}
	}
	return i
}

var versionWord = regexp.MustCompile(`\s(\d+(?:\.\d+)+)\s`)

// parseVersion finds the driver's version in /proc/driver/nvidia/version.
func parseVersion(text string) (string, error) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "NVRM version:") {
			if m := versionWord.FindStringSubmatch(line); m != nil {
				return m[1], nil
			}
		}
	}
	return "", fmt.Errorf("/proc/driver/nvidia/version: %w: no version in %q", berth.ErrUnavailable, strings.TrimSpace(text))
}

// cudaOfBranch is the newest CUDA that each branch of the driver runs, as nvidia-smi shows it. A branch that is
// not here leaves the version unknown.
var cudaOfBranch = map[string]string{
	"384": "9.0", "390": "9.1", "396": "9.2", "410": "10.0", "418": "10.1", "440": "10.2", "450": "11.0",
	"455": "11.1", "460": "11.2", "465": "11.3", "470": "11.4", "495": "11.5", "510": "11.6", "515": "11.7",
	"520": "11.8", "525": "12.0", "530": "12.1", "535": "12.2", "545": "12.3", "550": "12.4", "555": "12.5",
	"560": "12.6", "565": "12.7", "570": "12.8", "575": "12.9", "580": "13.0",
}

// CUDAOf returns the newest CUDA that a version of the driver runs; "" if it is not known.
func CUDAOf(driver string) string {
	branch, _, _ := strings.Cut(driver, ".")
	return cudaOfBranch[branch]
}
