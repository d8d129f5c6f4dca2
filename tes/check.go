package tes

import (
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/tes/document"
)

// Check reports the first thing in a task that makes no sense, in the words of the document that the task
// amounts to. The error wraps ErrInvalid. It looks at nothing but the task: whether the host has what the
// task asks for is not its question.
func Check(task berth.Task) error {
	for path, message := range faults(task) {
		return &document.Error{Path: path, Message: message}
	}
	return nil
}

// IsPattern reports whether an output path is a pattern: has one of * ? [.
func IsPattern(path string) bool { return strings.ContainsAny(path, "*?[") }

// CleanPath takes double slashes, dots and the slash at the end out of an absolute path. What Check refuses
// stays as it is: relative paths, and those with .. in them.
func CleanPath(p string) string {
	if !strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..") {
		return p
	}
	return path.Clean(p)
}

// check collects the faults of a task; yield false ends it.
type check struct {
	yield func(path, message string) bool
	done  bool
}

func (c *check) fault(path, format string, args ...any) {
	if !c.done {
		c.done = !c.yield(path, fmt.Sprintf(format, args...))
	}
}

// faults yields the path of each fault and what it is.
func faults(t berth.Task) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		c := &check{yield: yield}
		c.text("name", t.Name)
		c.text("description", t.Description)
		c.keys("tags", t.Labels)
		if len(t.Steps) == 0 {
			c.fault("executors", "a task has one executor at least")
		}
		for i, s := range t.Steps {
			c.step(fmt.Sprintf("executors[%d]", i), s)
		}
		c.inputs(t.Inputs)
		c.outputs(t.Outputs)
		c.volumes(t.Volumes)
		c.limits(t.Resources.Limits)
		c.gpus(t.Resources.GPUs)
		c.network(t.Network)
		c.hostname(t.Hostname)
		c.valid("cgroup_parent", berth.CheckCgroupParent(t.CgroupParent))
		if t.Timeout < 0 {
			c.fault("timeout", "it is negative")
		}
		c.oneOf("pull", string(t.Pull), "always", "missing", "never")
	}
}

func (c *check) step(at string, s berth.Step) {
	if s.Image == "" {
		c.fault(at+".image", "an executor names an image")
	}
	c.text(at+".image", s.Image)
	if strings.ContainsAny(s.Image, " \t\r\n") {
		c.fault(at+".image", "%q has white space in it", s.Image)
	}
	if s.Command != nil && len(s.Command) == 0 && len(s.Entrypoint) == 0 {
		c.fault(at+".command", "it is empty; leave it out for the image's own")
	}
	if argv := append(slices.Clone(s.Entrypoint), s.Command...); len(argv) > 0 && argv[0] == "" {
		c.fault(at+".command", "its first word is empty; it names the program")
	}
	for i, arg := range s.Command {
		c.text(fmt.Sprintf("%s.command[%d]", at, i), arg)
	}
	for i, arg := range s.Entrypoint {
		c.text(fmt.Sprintf("%s.entrypoint[%d]", at, i), arg)
	}
	c.env(at+".env", s.Env)
	if s.WorkingDir != "" && s.WorkingDir != "." {
		c.containerPath(at+".workdir", s.WorkingDir, true)
	}
	for _, stream := range []struct{ name, path string }{{"stdin", s.Stdin}, {"stdout", s.Stdout}, {"stderr", s.Stderr}} {
		if stream.path != "" {
			c.containerPath(at+"."+stream.name, stream.path, false)
		}
	}
	if s.Stdin != "" && s.OpenStdin {
		c.fault(at+".interactive", "standard input is the file of stdin; it cannot be berth's too")
	}
	if strings.ContainsAny(s.User, " \t\r\n\x00") || strings.HasPrefix(s.User, ":") || strings.HasSuffix(s.User, ":") || strings.Count(s.User, ":") > 1 {
		c.fault(at+".user", "%q is no user: write USER or USER:GROUP, by name or number", s.User)
	}
	for i, g := range s.Groups {
		if g == "" || strings.ContainsAny(g, " \t\r\n\x00:") {
			c.fault(fmt.Sprintf("%s.groups[%d]", at, i), "%q is no group: write its name or number", g)
		}
	}
	c.mounts(at+".mounts", s.Mounts)
	for i, d := range s.Devices {
		c.device(fmt.Sprintf("%s.devices[%d]", at, i), d)
	}
	if s.ShmSize < 0 {
		c.fault(at+".shm_size", "it is negative")
	}
	c.capabilities(at+".cap_add", s.CapAdd)
	c.capabilities(at+".cap_drop", s.CapDrop)
	if sc := s.Seccomp; sc != "" && sc != "unconfined" && !strings.HasPrefix(strings.TrimSpace(sc), "{") {
		c.fault(at+".seccomp", "it is \"unconfined\" or a profile's JSON text")
	}
	c.valid(at+".apparmor", berth.CheckAppArmor(s.AppArmor))
	c.valid(at+".selinux", berth.CheckSELinux(s.SELinux))
	for _, k := range sorted(s.Sysctls) {
		if k == "" || strings.ContainsAny(k, " \t\r\n\x00/=") || !strings.Contains(k, ".") {
			c.fault(at+".sysctls", "%q is no kernel parameter: write it with dots, as in net.core.somaxconn", k)
		}
		c.text(at+".sysctls."+k, s.Sysctls[k])
	}
	for i, u := range s.Ulimits {
		c.ulimit(fmt.Sprintf("%s.ulimits[%d]", at, i), u)
	}
	c.platform(at+".platform", s.Platform)
	c.signal(at+".stop_signal", s.StopSignal)
	c.text(at+".runtime", s.Runtime)
}

// valid tells of an error of ErrInvalid, whose word the path stands for.
func (c *check) valid(at string, err error) {
	if err != nil {
		c.fault(at, "%s", strings.Replace(err.Error(), berth.ErrInvalid.Error()+": ", "", 1))
	}
}

// text refuses what no argument, variable or path can hold.
func (c *check) text(at, s string) {
	if strings.ContainsRune(s, 0) {
		c.fault(at, "it has a zero byte in it")
	}
}

func (c *check) keys(at string, m map[string]string) {
	for _, k := range sorted(m) {
		if k == "" {
			c.fault(at, "a key is empty")
		}
		c.text(at, k)
		c.text(at+"."+k, m[k])
	}
}

func (c *check) env(at string, env []string) {
	for _, e := range env {
		k, v, ok := strings.Cut(e, "=")
		if !ok || k == "" {
			c.fault(at, "%q is no variable: a name, = and a value", e)
		}
		c.text(at, k)
		c.text(at+"."+k, v)
	}
}

// containerPath checks an absolute path; root says whether "/" itself may be meant.
func (c *check) containerPath(at, p string, root bool) {
	c.text(at, p)
	switch {
	case p == "":
		c.fault(at, "it is missing; it is an absolute path in the container")
	case !strings.HasPrefix(p, "/"):
		c.fault(at, "%q is not an absolute path", p)
	case slices.Contains(strings.Split(p, "/"), ".."):
		c.fault(at, "%q has .. in it", p)
	case path.Clean(p) == "/" && !root:
		c.fault(at, "it cannot be the root of the container")
	}
}

// mountPath checks an absolute path at which something is put into the container.
func (c *check) mountPath(at, p string) {
	c.containerPath(at, p, false)
	switch clean := path.Clean(p); {
	case clean == "/proc" || strings.HasPrefix(clean, "/proc/"):
		c.fault(at, "nothing can be put at %s: /proc is the container's own; choose a path outside it", p)
	case clean == "/sys" || clean == "/dev":
		c.fault(at, "nothing can be put at %s: it is the container's own; choose another path, or one below it", p)
	}
}

func (c *check) inputs(inputs []berth.Input) {
	seen := map[string]string{}
	for i, in := range inputs {
		at := fmt.Sprintf("inputs[%d]", i)
		if in.URL == "" && in.Content == nil {
			c.fault(at+".url", "an input has a url or content")
		}
		c.text(at+".url", in.URL)
		c.mountPath(at+".path", in.Path)
		c.oneOf(at+".type", string(in.Type), "FILE", "DIRECTORY")
		if in.Content != nil && in.Type == berth.Directory {
			c.fault(at+".type", "content makes a file, not a directory")
		}
		c.once(at+".path", in.Path, seen)
	}
}

// once refuses a path that another entry of the same list has.
func (c *check) once(at, p string, seen map[string]string) {
	clean := path.Clean(p)
	if before, ok := seen[clean]; ok {
		c.fault(at, "%s is also the path of %s", p, strings.TrimSuffix(before, ".path"))
	}
	seen[clean] = at
}

func (c *check) outputs(outputs []berth.Output) {
	files := map[string]int{} // by URL
	for i, out := range outputs {
		at := fmt.Sprintf("outputs[%d]", i)
		if out.Type != berth.Directory && !IsPattern(out.Path) && out.URL != "" {
			if first, ok := files[out.URL]; ok {
				c.fault(at+".url", "%q is where outputs[%d] goes too, which would be lost", out.URL, first)
			}
			files[out.URL] = i
		}
		c.containerPath(at+".path", out.Path, false)
		if out.URL == "" {
			c.fault(at+".url", "an output has a url: where it is to be put")
		}
		c.text(at+".url", out.URL)
		c.oneOf(at+".type", string(out.Type), "FILE", "DIRECTORY")
		if !IsPattern(out.Path) {
			continue
		}
		c.text(at+".path_prefix", out.PathPrefix)
		switch {
		case out.PathPrefix == "":
			c.fault(at+".path_prefix", "path is a pattern; say with path_prefix what is taken off each match before it is appended to url")
		case !strings.HasPrefix(out.PathPrefix, "/"):
			c.fault(at+".path_prefix", "%q is not an absolute path", out.PathPrefix)
		case !strings.HasPrefix(out.Path, strings.TrimSuffix(out.PathPrefix, "/")+"/"):
			c.fault(at+".path_prefix", "%q is not a directory in which %q begins", out.PathPrefix, out.Path)
		}
		if _, err := path.Match(out.Path, ""); err != nil {
			c.fault(at+".path", "%q is no pattern: a [ is never closed, or holds nothing", out.Path)
		}
	}
}

func (c *check) volumes(volumes []berth.Volume) {
	seen := map[string]string{}
	for i, v := range volumes {
		at := fmt.Sprintf("volumes[%d]", i)
		c.mountPath(at+".path", v.Path)
		if v.Size < 0 {
			c.fault(at+".size", "it is negative")
		}
		c.once(at+".path", v.Path, seen)
	}
}

func (c *check) mounts(at string, mounts []berth.Mount) {
	seen := map[string]string{}
	for i, m := range mounts {
		at := fmt.Sprintf("%s[%d]", at, i)
		c.oneOf(at+".type", string(m.Type), "bind", "tmpfs")
		c.mountPath(at+".target", m.Target)
		c.text(at+".source", m.Source)
		switch tmpfs := m.Type == berth.MountTmpfs; {
		case tmpfs && m.Source != "":
			c.fault(at+".source", "a tmpfs has no source")
		case !tmpfs && !strings.HasPrefix(m.Source, "/"):
			c.fault(at+".source", "%q is not an absolute path on this host", m.Source)
		case !tmpfs && m.Size != 0:
			c.fault(at+".size", "only a tmpfs has a size")
		case m.Size < 0:
			c.fault(at+".size", "it is negative")
		}
		c.once(at+".target", m.Target, seen)
	}
}

func (c *check) gpus(doc json.RawMessage) {
	_, err := device.ParseRequests(doc)
	c.valid("resources.gpus", err)
}

func (c *check) limits(l berth.Limits) {
	switch {
	case l.CPU < 0:
		c.fault("resources.cpu_cores", "it is negative")
	case math.IsNaN(l.CPU) || math.IsInf(l.CPU, 0):
		c.fault("resources.cpu_cores", "it is no number")
	case l.CPU != 0 && l.CPU < 0.01:
		c.fault("resources.cpu_cores", "%v is less than the least that can be given, 0.01", l.CPU)
	}
	if l.Memory < 0 {
		c.fault("resources.ram_gb", "it is negative")
	}
	if l.Disk < 0 {
		c.fault("resources.disk_gb", "it is negative")
	}
	if l.PIDs < -1 {
		c.fault("resources.pids", "it is negative; -1 is no limit")
	}
	if l.PIDs > berth.MaxPIDs {
		c.fault("resources.pids", "%d is more than the most that Linux takes, %d; -1 is no limit", l.PIDs, berth.MaxPIDs)
	}
}

func (c *check) network(n berth.Network) {
	c.oneOf("network", string(n.Mode), "none", "bridge", "host")
	for i, h := range n.Hosts {
		name, address, ok := strings.Cut(h, ":")
		if _, err := netip.ParseAddr(strings.Trim(address, "[]")); !ok || name == "" || err != nil && address != "host-gateway" {
			c.fault(fmt.Sprintf("network.hosts[%d]", i), "%q is no host: write NAME:ADDRESS", h)
		}
	}
}

func (c *check) hostname(h string) {
	if len(h) > 64 {
		c.fault("hostname", "it is longer than 64 characters")
	}
	for label := range strings.SplitSeq(h, ".") {
		if h != "" && (label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" || label[0] == '-') {
			c.fault("hostname", "%q is no host name: letters, digits, hyphens and dots", h)
			return
		}
	}
}

func (c *check) oneOf(at, s string, allowed ...string) {
	if s != "" && !slices.Contains(allowed, s) {
		c.fault(at, "%q is not one of %s%s", s, strings.Join(allowed, ", "), document.DidYouMean(s, allowed))
	}
}

func (c *check) platform(at, p string) {
	if p == "" {
		return
	}
	parts := strings.Split(p, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") || strings.ContainsAny(p, " \t\r\n\x00") {
		c.fault(at, "%q is no platform: write OS/ARCH[/VARIANT], as in linux/amd64", p)
	}
}

func (c *check) signal(at, s string) {
	if s == "" {
		return
	}
	if _, err := berth.ParseSignal(s); err != nil {
		c.fault(at, "%q is no signal: write its name or number, as in TERM, SIGRTMIN+3 or 15", s)
	}
}

func sorted(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
