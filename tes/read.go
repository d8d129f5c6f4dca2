package tes

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes/document"
)

// task reads a TES Task. Keys that only a server sets are refused, so that nobody believes they had an effect.
func (r *reader) task(n *document.Node, t *berth.Task) {
	t.Grace = -1
	server := func(n *document.Node, path string) {
		r.fault(n, path, nil, "berth sets it; leave it out")
	}
	r.fields(n, "", map[string]field{
		"name":        r.str(&t.Name),
		"description": r.str(&t.Description),
		"tags":        r.strmap(&t.Labels),
		"executors": r.list(func(n *document.Node, path string) {
			var s berth.Step
			r.executor(n, path, &s)
			t.Steps = append(t.Steps, s)
		}),
		"inputs": r.list(func(n *document.Node, path string) {
			var in berth.Input
			r.input(n, path, &in)
			t.Inputs = append(t.Inputs, in)
		}),
		"outputs": r.list(func(n *document.Node, path string) {
			var out berth.Output
			r.output(n, path, &out)
			t.Outputs = append(t.Outputs, out)
		}),
		"volumes": r.list(func(n *document.Node, path string) {
			var v berth.Volume
			r.volume(n, path, &v)
			t.Volumes = append(t.Volumes, v)
		}),
		"resources":     func(n *document.Node, path string) { r.resources(n, path, &t.Resources) },
		"network":       func(n *document.Node, path string) { r.network(n, path, &t.Network) },
		"hostname":      r.str(&t.Hostname),
		"cgroup_parent": r.containerPath(&t.CgroupParent),
		"timeout":       r.duration(&t.Timeout),
		"grace":         r.duration(&t.Grace),
		"pull":          readString(r, &t.Pull),
		"insecure":      r.boolean(&t.Insecure),
		"no_wait":       r.boolean(&t.NoWait),
		"keep":          r.boolean(&t.Keep),
		"ephemeral":     r.boolean(&t.Ephemeral),
		"run_again":     r.boolean(&t.RunAgain),

		"id": server, "state": server, "logs": server, "creation_time": server,
	})
}

func (r *reader) executor(n *document.Node, path string, s *berth.Step) {
	var env map[string]string
	r.fields(n, path, map[string]field{
		"image":        r.str(&s.Image),
		"command":      r.strings(&s.Command),
		"workdir":      r.containerPath(&s.WorkingDir),
		"stdin":        r.containerPath(&s.Stdin),
		"stdout":       r.containerPath(&s.Stdout),
		"stderr":       r.containerPath(&s.Stderr),
		"env":          r.strmap(&env),
		"ignore_error": r.boolean(&s.IgnoreError),

		"entrypoint":  r.strings(&s.Entrypoint),
		"user":        r.str(&s.User),
		"groups":      r.some(&s.Groups),
		"mounts":      r.list(func(n *document.Node, path string) { r.mount(n, path, s) }),
		"devices":     r.list(func(n *document.Node, path string) { r.device(n, path, s) }),
		"shm_size":    r.size(&s.ShmSize),
		"read_only":   r.boolean(&s.ReadOnly),
		"no_init":     r.boolean(&s.NoInit),
		"tty":         r.boolean(&s.TTY),
		"interactive": r.boolean(&s.OpenStdin),
		"cap_add":     r.some(&s.CapAdd),
		"cap_drop":    r.some(&s.CapDrop),
		"seccomp":     r.str(&s.Seccomp),
		"apparmor":    r.str(&s.AppArmor),
		"selinux":     r.some(&s.SELinux),
		"sysctls":     r.strmap(&s.Sysctls),
		"ulimits":     r.list(func(n *document.Node, path string) { r.ulimit(n, path, s) }),
		"runtime":     r.str(&s.Runtime),
		"platform":    r.str(&s.Platform),
		"stop_signal": r.str(&s.StopSignal),
	})
	s.Env = envList(env)
}

// envList writes variables as a list in the order of their names, so that equal tasks are equal values.
func envList(env map[string]string) []string {
	var list []string
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

func (r *reader) input(n *document.Node, path string, in *berth.Input) {
	var streamable bool
	var description string
	r.fields(n, path, map[string]field{
		"name":        r.str(&in.Name),
		"description": r.str(&description),
		"url":         r.hostPath(&in.URL),
		"path":        r.containerPath(&in.Path),
		"type":        readString(r, &in.Type),
		"streamable":  r.boolean(&streamable),
		"content": func(n *document.Node, path string) {
			var s string
			r.str(&s)(n, path)
			in.Content = &s
		},
	})
	if in.Content != nil && in.URL != "" {
		in.URL = "" // the specification: content wins
		r.warnings = append(r.warnings, path+" has both url and content; content is used")
	}
	if description != "" && in.Name == "" {
		in.Name = description
	}
}

func (r *reader) output(n *document.Node, path string, out *berth.Output) {
	var description string
	r.fields(n, path, map[string]field{
		"name":        r.str(&out.Name),
		"description": r.str(&description),
		"url":         r.hostPath(&out.URL),
		"path":        r.containerPath(&out.Path),
		"path_prefix": r.containerPath(&out.PathPrefix),
		"type":        readString(r, &out.Type),
		"optional":    r.boolean(&out.Optional),
	})
	if description != "" && out.Name == "" {
		out.Name = description
	}
	if !IsPattern(out.Path) {
		out.PathPrefix = "" // the specification: ignored unless path is a pattern
	}
}

// volume reads TES's plain path, or berth's map.
func (r *reader) volume(n *document.Node, path string, v *berth.Volume) {
	if n.Kind == document.String {
		r.containerPath(&v.Path)(n, path)
		return
	}
	r.fields(n, path, map[string]field{
		"path":    r.containerPath(&v.Path),
		"size":    r.size(&v.Size),
		"copy_up": r.boolean(&v.CopyUp),
		"mode":    r.mode(&v.Mode),
	})
}

func (r *reader) resources(n *document.Node, path string, res *berth.Resources) {
	var strict bool
	var backend map[string]string
	var backendAt *document.Node
	r.fields(n, path, map[string]field{
		"cpu_cores":   r.float(&res.CPU),
		"ram_gb":      r.gib(&res.Memory),
		"disk_gb":     r.gib(&res.Disk),
		"pids":        r.integer(&res.PIDs),
		"preemptible": r.boolean(&res.Preemptible),
		"zones":       r.some(&res.Zones),
		"backend_parameters": func(n *document.Node, path string) {
			backendAt = n
			r.strmap(&backend)(n, path)
		},
		"backend_parameters_strict": r.boolean(&strict),
		"gpus":                      r.raw(&res.GPUs),
	})
	r.backend(backendAt, path+".backend_parameters", backend, strict, res)
}

// backend keeps the parameters that mean something. Their keys know no case.
func (r *reader) backend(n *document.Node, path string, given map[string]string, strict bool, res *berth.Resources) {
	keys := make([]string, 0, len(given))
	for k := range given {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, key := range keys {
		name := strings.ToLower(key)
		_, twice := res.Backend[name]
		switch {
		case !slices.Contains(r.opts.BackendParameters, name) && strict:
			r.fault(n, join(path, key), berth.ErrUnsupported, "berth knows no such parameter, and backend_parameters_strict is set%s",
				document.DidYouMean(name, r.opts.BackendParameters))
		case !slices.Contains(r.opts.BackendParameters, name):
			r.warnings = append(r.warnings, join(path, key)+" has no effect: berth knows no such parameter")
		case twice:
			r.fault(n, join(path, key), nil, "it was given twice: the case of its letters does not count")
		default:
			if res.Backend == nil {
				res.Backend = map[string]string{}
			}
			res.Backend[name] = given[key]
		}
	}
}

// network reads a mode, or a map of all.
func (r *reader) network(n *document.Node, path string, net *berth.Network) {
	if n.Kind == document.String {
		net.Mode = berth.NetworkMode(n.Text)
		return
	}
	r.fields(n, path, map[string]field{
		"mode":  readString(r, &net.Mode),
		"hosts": r.some(&net.Hosts),
		"ports": r.list(func(n *document.Node, path string) {
			var p berth.Port
			if r.expect(n, path, document.String) {
				var ok bool
				if p, ok = ParsePort(n.Text); !ok {
					r.fault(n, path, nil, "%q is no port: write [[ADDRESS:]HOST:]CONTAINER[/tcp|/udp]", n.Text)
				}
			}
			net.Ports = append(net.Ports, p)
		}),
	})
}

// ParsePort reads [[ADDRESS:]HOST:]CONTAINER[/tcp|/udp].
func ParsePort(s string) (p berth.Port, ok bool) {
	rest, protocol, _ := strings.Cut(s, "/")
	if protocol != "" && protocol != "tcp" && protocol != "udp" {
		return p, false
	}
	p.Protocol = protocol
	number := func(s string) uint16 {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			ok = false
		}
		return uint16(n)
	}
	ok = true
	rest, container, two := cutLast(rest, ":")
	if !two {
		p.Container = number(rest)
		return p, ok
	}
	p.Container = number(container)
	address, host, three := cutLast(rest, ":")
	if !three {
		p.Host = number(rest)
		return p, ok
	}
	if host != "" {
		p.Host = number(host)
	}
	addr, err := netip.ParseAddr(strings.Trim(address, "[]"))
	p.HostIP = addr.String()
	return p, ok && err == nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func (r *reader) mount(n *document.Node, path string, s *berth.Step) {
	var m berth.Mount
	r.fields(n, path, map[string]field{
		"type":      readString(r, &m.Type),
		"source":    r.hostPath(&m.Source),
		"target":    r.containerPath(&m.Target),
		"read_only": r.boolean(&m.ReadOnly),
		"size":      r.size(&m.Size),
		"options":   r.some(&m.Options),
	})
	if m.Type == berth.MountBind {
		m.Type = "" // one spelling of what is the same
	}
	s.Mounts = append(s.Mounts, m)
}

// device reads HOST[:CONTAINER[:PERMISSIONS]], as Docker's --device does.
func (r *reader) device(n *document.Node, path string, s *berth.Step) {
	if !r.expect(n, path, document.String) {
		return
	}
	d, err := ParseDevice(n.Text)
	if err != nil {
		r.fault(n, path, nil, "%v", err)
	}
	s.Devices = append(s.Devices, d)
}

func (r *reader) ulimit(n *document.Node, path string, s *berth.Step) {
	if !r.expect(n, path, document.String) {
		return
	}
	u, err := ParseUlimit(n.Text)
	if err != nil {
		r.fault(n, path, nil, "%v", err)
	}
	s.Ulimits = append(s.Ulimits, u)
}
