package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes"
	"github.com/berth-project/berth/tes/document"
)

// maxDocument bounds a task document, in bytes.
const maxDocument = 64 << 20

func (a *app) readTask(name string) (berth.Task, []string, error) {
	var data []byte
	var err error
	opts := tes.Options{Name: name, Dir: a.dir}
	if name == "-" {
		opts.Name = "standard input"
		data, err = io.ReadAll(io.LimitReader(a.in, maxDocument+1))
	} else {
		opts.Dir = filepath.Dir(a.abs(name))
		data, err = readFile(name, maxDocument+1)
	}
	if err != nil {
		return berth.Task{}, nil, invalid("read task document: %v", err)
	}
	if len(data) > maxDocument {
		return berth.Task{}, nil, invalid("read task document: %s is larger than %s", opts.Name, berth.FormatSize(maxDocument))
	}
	return tes.Parse(data, opts)
}

// readFile reads most bytes of a file at most.
func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, most))
}

// flagOf maps the last keys of a document's path to the flags that say the same.
var flagOf = map[string]string{
	"command": "COMMAND", "image": "IMAGE", "workdir": "--workdir", "entrypoint": "--entrypoint", "stdin": "--stdin", "stdout": "--stdout",
	"stderr": "--stderr", "env": "--env", "interactive": "--interactive", "user": "--user", "groups": "--group-add", "mounts": "--mount",
	"devices": "--device", "shm_size": "--shm-size", "cap_add": "--cap-add", "cap_drop": "--cap-drop", "seccomp": "--security-opt",
	"apparmor": "--security-opt", "selinux": "--security-opt", "cgroup_parent": "--cgroup-parent",
	"sysctls": "--sysctl", "ulimits": "--ulimit", "platform": "--platform", "stop_signal": "--stop-signal", "runtime": "--runtime",
	"inputs": "--input", "outputs": "--output", "volumes": "--volume", "cpu_cores": "--cpus", "ram_gb": "--memory", "disk_gb": "--disk",
	"pids": "--pids", "tags": "--label", "hosts": "--add-host", "network": "--network", "hostname": "--hostname", "name": "--name",
	"timeout": "--timeout", "pull": "--pull", "gpus": "--gpus",
}

// inFlags tells a fault of a task in the words of the flags that made it.
func inFlags(err error) error {
	fault, ok := errors.AsType[*document.Error](err)
	if !ok {
		return err
	}
	words := strings.FieldsFunc(fault.Path, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
	for _, w := range slices.Backward(words) {
		if flag := flagOf[w]; flag != "" {
			return invalid("run: %s: %s", flag, fault.Message)
		}
	}
	return err
}
