package tes

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes/document"
)

// Marshal writes the document that a task amounts to: Parse makes the same task of it, but for Task.ID, which
// is not the document's to say, and Task.CallerDir. What was left at its default is left out. ErrUnsupported:
// the task holds text that is not UTF-8, which no document can hold.
func Marshal(task berth.Task, format document.Format) ([]byte, error) {
	w := &writer{}
	root := w.task(task)
	if w.bad != "" {
		return nil, fmt.Errorf("write task document: %w: %q is not UTF-8", berth.ErrUnsupported, w.bad)
	}
	return document.Marshal(root, format), nil
}

// writer builds trees, leaving out what is at its default.
type writer struct{ bad string }

func (w *writer) text(s string) *document.Node {
	if !utf8.ValidString(s) {
		w.bad = s
	}
	return &document.Node{Kind: document.String, Text: s}
}

// put appends a field unless its value is nil.
func put(n *document.Node, key string, value *document.Node) {
	if value != nil {
		n.Fields = append(n.Fields, document.Field{Key: key, Value: value})
	}
}

func (w *writer) str(s string) *document.Node {
	if s == "" {
		return nil
	}
	return w.text(s)
}

func boolean(b bool) *document.Node {
	if !b {
		return nil
	}
	return &document.Node{Kind: document.Bool, Text: "true"}
}

func number(f float64) *document.Node {
	if f == 0 {
		return nil
	}
	text := strconv.FormatFloat(f, 'f', -1, 64)
	return &document.Node{Kind: document.Number, Text: text}
}

// gib writes bytes as GiB; exact, as it only shifts the exponent.
func gib(bytes int64) *document.Node {
	if exact := float64(bytes); int64(exact) != bytes {
		return &document.Node{Kind: document.String, Text: berth.FormatSize(bytes)}
	}
	return number(float64(bytes) / (1 << 30))
}

func size(bytes int64) *document.Node {
	if bytes == 0 {
		return nil
	}
	return &document.Node{Kind: document.String, Text: berth.FormatSize(bytes)}
}

func list[T any](values []T, write func(T) *document.Node) *document.Node {
	if len(values) == 0 {
		return nil
	}
	n := &document.Node{Kind: document.List}
	for _, v := range values {
		n.Items = append(n.Items, write(v))
	}
	return n
}

// argv is written even where it is empty: then it says something else than nil.
func (w *writer) argv(values []string) *document.Node {
	if values == nil {
		return nil
	}
	if len(values) == 0 {
		return &document.Node{Kind: document.List}
	}
	return list(values, w.text)
}

func (w *writer) strmap(m map[string]string) *document.Node {
	if len(m) == 0 {
		return nil
	}
	n := &document.Node{Kind: document.Map}
	for _, k := range sorted(m) {
		w.text(k)
		put(n, k, w.text(m[k]))
	}
	return n
}

func (w *writer) env(env []string) *document.Node {
	m := map[string]string{}
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		m[k] = v
	}
	return w.strmap(m)
}

func (w *writer) task(t berth.Task) *document.Node {
	n := &document.Node{Kind: document.Map}
	put(n, "name", w.str(t.Name))
	put(n, "description", w.str(t.Description))
	put(n, "tags", w.strmap(t.Labels))
	put(n, "executors", list(t.Steps, w.executor))
	put(n, "inputs", list(t.Inputs, w.input))
	put(n, "outputs", list(t.Outputs, w.output))
	put(n, "volumes", list(t.Volumes, w.volume))
	put(n, "resources", w.resources(t.Resources))
	put(n, "network", w.network(t.Network))
	put(n, "hostname", w.str(t.Hostname))
	put(n, "cgroup_parent", w.str(t.CgroupParent))
	if t.Timeout > 0 {
		put(n, "timeout", w.str(berth.FormatDuration(t.Timeout)))
	}
	if t.Grace >= 0 {
		put(n, "grace", w.str(berth.FormatDuration(t.Grace)))
	}
	put(n, "pull", w.str(string(t.Pull)))
	put(n, "insecure", boolean(t.Insecure))
	put(n, "no_wait", boolean(t.NoWait))
	put(n, "keep", boolean(t.Keep))
	put(n, "ephemeral", boolean(t.Ephemeral))
	put(n, "run_again", boolean(t.RunAgain))
	return n
}

func (w *writer) executor(s berth.Step) *document.Node {
	n := &document.Node{Kind: document.Map}
	put(n, "image", w.str(s.Image))
	put(n, "entrypoint", w.argv(s.Entrypoint))
	put(n, "command", w.argv(s.Command))
	put(n, "workdir", w.str(s.WorkingDir))
	put(n, "env", w.env(s.Env))
	put(n, "stdin", w.str(s.Stdin))
	put(n, "stdout", w.str(s.Stdout))
	put(n, "stderr", w.str(s.Stderr))
	put(n, "ignore_error", boolean(s.IgnoreError))
	put(n, "user", w.str(s.User))
	put(n, "groups", list(s.Groups, w.text))
	put(n, "mounts", list(s.Mounts, w.mount))
	put(n, "devices", list(s.Devices, func(d berth.Device) *document.Node { return w.text(FormatDevice(d)) }))
	put(n, "shm_size", size(s.ShmSize))
	put(n, "read_only", boolean(s.ReadOnly))
	put(n, "no_init", boolean(s.NoInit))
	put(n, "tty", boolean(s.TTY))
	put(n, "interactive", boolean(s.OpenStdin))
	put(n, "cap_add", list(s.CapAdd, w.text))
	put(n, "cap_drop", list(s.CapDrop, w.text))
	put(n, "seccomp", w.str(s.Seccomp))
	put(n, "apparmor", w.str(s.AppArmor))
	put(n, "selinux", list(s.SELinux, w.text))
	put(n, "sysctls", w.strmap(s.Sysctls))
	put(n, "ulimits", list(s.Ulimits, func(u berth.Ulimit) *document.Node { return w.text(FormatUlimit(u)) }))
	put(n, "runtime", w.str(s.Runtime))
	put(n, "platform", w.str(s.Platform))
	put(n, "stop_signal", w.str(s.StopSignal))
	return n
}

func (w *writer) input(in berth.Input) *document.Node {
	n := &document.Node{Kind: document.Map}
	put(n, "name", w.str(in.Name))
	if in.Content != nil {
		put(n, "content", w.text(*in.Content))
	} else {
		put(n, "url", w.str(in.URL))
	}
	put(n, "path", w.str(in.Path))
	put(n, "type", w.str(string(in.Type)))
	return n
}

func (w *writer) output(out berth.Output) *document.Node {
	n := &document.Node{Kind: document.Map}
	put(n, "name", w.str(out.Name))
	put(n, "url", w.str(out.URL))
	put(n, "path", w.str(out.Path))
	put(n, "path_prefix", w.str(out.PathPrefix))
	put(n, "type", w.str(string(out.Type)))
	put(n, "optional", boolean(out.Optional))
	return n
}

func (w *writer) volume(v berth.Volume) *document.Node {
	if v.Size == 0 && !v.CopyUp && v.Mode == 0 {
		return w.text(v.Path)
	}
	n := &document.Node{Kind: document.Map}
	put(n, "path", w.str(v.Path))
	put(n, "size", size(v.Size))
	put(n, "copy_up", boolean(v.CopyUp))
	if v.Mode != 0 {
		put(n, "mode", w.text(strconv.FormatUint(modeBits(v.Mode), 8)))
	}
	return n
}

// The bits of a mode above the nine of permission, as chmod(1) and Go have them.
var modes = []struct {
	bit  uint64
	mode os.FileMode
}{{0o4000, os.ModeSetuid}, {0o2000, os.ModeSetgid}, {0o1000, os.ModeSticky}}

func modeBits(mode os.FileMode) uint64 {
	bits := uint64(mode.Perm())
	for _, m := range modes {
		if mode&m.mode != 0 {
			bits |= m.bit
		}
	}
	return bits
}

func fileMode(bits uint64) os.FileMode {
	mode := os.FileMode(bits & 0o777)
	for _, m := range modes {
		if bits&m.bit != 0 {
			mode |= m.mode
		}
	}
	return mode
}

func (w *writer) resources(r berth.Resources) *document.Node {
	n := &document.Node{Kind: document.Map}
	put(n, "cpu_cores", number(r.CPU))
	put(n, "ram_gb", gib(r.Memory))
	put(n, "disk_gb", gib(r.Disk))
	put(n, "pids", number(float64(r.PIDs)))
	put(n, "preemptible", boolean(r.Preemptible))
	put(n, "zones", list(r.Zones, w.text))
	put(n, "backend_parameters", w.strmap(r.Backend))
	if r.GPUs != nil {
		put(n, "gpus", w.raw(r.GPUs))
	}
	if len(n.Fields) == 0 {
		return nil
	}
	return n
}

func (w *writer) raw(data json.RawMessage) *document.Node {
	n, err := document.Parse("gpus", data, document.JSON)
	if err != nil {
		w.bad = string(data)
	}
	return n
}

func (w *writer) network(net berth.Network) *document.Node {
	if len(net.Hosts) == 0 && len(net.Ports) == 0 {
		return w.str(string(net.Mode))
	}
	n := &document.Node{Kind: document.Map}
	put(n, "mode", w.str(string(net.Mode)))
	put(n, "hosts", list(net.Hosts, w.text))
	put(n, "ports", list(net.Ports, func(p berth.Port) *document.Node { return w.text(formatPort(p)) }))
	return n
}

func formatPort(p berth.Port) string {
	s := strconv.Itoa(int(p.Container))
	if p.Host != 0 || p.HostIP != "" {
		host := ""
		if p.Host != 0 {
			host = strconv.Itoa(int(p.Host))
		}
		s = host + ":" + s
	}
	if p.HostIP != "" {
		ip := net.JoinHostPort(p.HostIP, "")
		s = ip + s
	}
	if p.Protocol != "" {
		s += "/" + p.Protocol
	}
	return s
}

func (w *writer) mount(m berth.Mount) *document.Node {
	n := &document.Node{Kind: document.Map}
	if m.Type != berth.MountBind {
		put(n, "type", w.str(string(m.Type)))
	}
	put(n, "source", w.str(m.Source))
	put(n, "target", w.str(m.Target))
	put(n, "read_only", boolean(m.ReadOnly))
	put(n, "size", size(m.Size))
	put(n, "options", list(m.Options, w.text))
	return n
}
