package cli

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes"
)

// taskOf makes the task of flags, arguments and document. Whatever makes it is checked as a document would be.
func (a *app) taskOf(o *runOptions, args []string) (task berth.Task, warnings []string, err error) {
	if err := o.check(args); err != nil {
		return task, nil, err
	}
	if o.file == "" {
		task.Grace = -1
		task.Steps = []berth.Step{{Image: args[0]}}
		if len(args) > 1 {
			task.Steps[0].Command = slices.Clone(args[1:])
		}
	} else if task, warnings, err = a.readTask(o.file); err != nil {
		return task, nil, err
	}
	asked := task.Ephemeral // by the document
	task.CallerDir = a.dir
	network, err := a.ownNetwork(o)
	if err != nil {
		return task, nil, err
	}
	for _, apply := range []func(*runOptions, *berth.Task) error{a.applyTask, a.applyFiles, a.applySteps, a.applyStreams} {
		if err := apply(o, &task); err != nil {
			return task, nil, err
		}
	}
	if err := a.checkDir(&task); err != nil {
		return task, nil, err
	}
	if err := tes.Check(task); err != nil {
		return task, nil, inFlags(err)
	}
	if network != "" && (task.Network.Mode == "" || o.changed("network")) {
		task.Network.Mode = berth.NetworkMode(network)
	}
	for _, text := range o.publish {
		p, ok := tes.ParsePort(text)
		if !ok {
			return task, nil, invalid("run: --publish: %q is no port: write [[ADDRESS:]HOST:]CONTAINER[/tcp|/udp]", text)
		}
		task.Network.Ports = append(task.Network.Ports, p)
	}
	if asked && o.detach {
		return task, nil, invalid("run: --detach and the document's ephemeral contradict each other: what a detached task writes is kept by the daemon while no berth reads it")
	}
	if asked && a.global.engine == engineOCI {
		return task, nil, unsupported("run: %s: ephemeral: it is about the copy that a daemon keeps of what a task writes, and the engine oci has none; leave it out, or see --engine docker", o.file)
	}
	if o.changed("ephemeral") && o.ephemeral && a.global.engine == engineOCI {
		return task, nil, unsupported("run: --ephemeral: it is about the copy that a daemon keeps of what a task writes, and the engine oci has none; leave it out, or see --engine docker")
	}
	if len(task.Network.Ports) > 0 && a.global.engine == engineOCI {
		return task, nil, unsupported("run: --publish: the engine oci publishes no ports; see --network host, and --engine docker")
	}
	if a.global.engine == engineOCI && slices.ContainsFunc(task.Steps, func(s berth.Step) bool { return remounts(&task, s) }) {
		warnings = append(warnings, "with CAP_SYS_ADMIN the task can mount its inputs and read-only mounts anew, and change their sources on this host")
	}
	return task, warnings, nil
}

// remounts reports whether a step can mount anew what is read-only for it.
func remounts(t *berth.Task, s berth.Step) bool {
	admin := slices.ContainsFunc(s.CapAdd, func(c string) bool {
		name := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		return name == "ALL" || name == "SYS_ADMIN"
	})
	return admin && (len(t.Inputs) > 0 || slices.ContainsFunc(s.Mounts, func(m berth.Mount) bool { return m.ReadOnly && m.Type != berth.MountTmpfs }))
}

// checkDir refuses paths that begin at a working directory that is gone.
func (a *app) checkDir(t *berth.Task) error {
	if a.dir != "" {
		return nil
	}
	files := [][3]string{}
	for _, in := range t.Inputs {
		files = append(files, [3]string{"--input", in.Path, in.URL})
	}
	for _, out := range t.Outputs {
		files = append(files, [3]string{"--output", out.Path, out.URL})
	}
	for _, s := range t.Steps {
		for _, m := range s.Mounts {
			files = append(files, [3]string{"--mount", m.Target, m.Source})
		}
	}
	for _, f := range files {
		flag, inside, name := f[0], f[1], f[2]
		if path.Dir(inside) == streamDir {
			flag = "--" + path.Base(inside)
		}
		if name != "" && !path.IsAbs(name) && !strings.Contains(name, "://") {
			return invalid("run: %s: %q begins at the current directory, which is gone; give an absolute path, or run berth in a directory that is there", flag, name)
		}
	}
	return nil
}

// ownNetwork takes the name of one of the daemon's own networks out of the flags, which documents and other engines do
// not know.
func (a *app) ownNetwork(o *runOptions) (string, error) {
	var known string
	err := choiceValue{&known, []string{"none", "host", "bridge"}}.Set(o.network)
	if o.network == "" || err == nil {
		return "", nil
	}
	if a.global.engine == engineOCI {
		return "", invalid("run: %s", valueError("--network", o.network, err))
	}
	name := o.network
	o.network = ""
	return name, nil
}

// abs makes a host path absolute.
func (a *app) abs(p string) string {
	if p == "" || filepath.IsAbs(p) || a.dir == "" {
		return p
	}
	return filepath.Join(a.dir, p)
}

// hostURL makes a host path absolute and leaves a URL as it is. A slash at the end stays.
func (a *app) hostURL(p string) string {
	if strings.Contains(p, "://") || filepath.IsAbs(p) {
		return p
	}
	abs := a.abs(p)
	if strings.HasSuffix(p, "/") || p == "." || p == ".." || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..") {
		abs = strings.TrimSuffix(abs, "/") + "/"
	}
	return abs
}

// applyTask sets what is of the task as a whole.
func (a *app) applyTask(o *runOptions, t *berth.Task) error {
	if o.given("name") {
		if err := checkName(o.name); err != nil {
			return err
		}
	}
	replace(o, "name", &t.Name, o.name)
	replace(o, "hostname", &t.Hostname, o.hostname)
	replace(o, "cgroup-parent", &t.CgroupParent, tes.CleanPath(o.cgroupParent))
	replace(o, "pull", &t.Pull, berth.PullPolicy(o.pull))
	replace(o, "network", &t.Network.Mode, berth.NetworkMode(o.network))
	replaceLimit(o, "timeout", &t.Timeout, o.timeout)
	if o.grace >= 0 && (t.Grace < 0 || o.changed("grace")) {
		t.Grace = o.grace
	}
	for _, size := range []struct {
		flag  string
		bytes int64
	}{{"memory", o.limits.Memory}, {"disk", o.limits.Disk}, {"shm-size", o.shmSize}} {
		if size.bytes > 0 && size.bytes < leastSize {
			meant := ""
			if size.bytes%1024 != 0 { // it has no unit
				meant = fmt.Sprintf("; did you mean %dMiB?", size.bytes)
			}
			return invalid("run: --%s: that is %d bytes, in which nothing fits%s", size.flag, size.bytes, meant)
		}
	}
	replaceLimit(o, "cpus", &t.Resources.CPU, o.limits.CPU)
	replaceLimit(o, "memory", &t.Resources.Memory, o.limits.Memory)
	replaceLimit(o, "disk", &t.Resources.Disk, o.limits.Disk)
	replace(o, "pids", &t.Resources.PIDs, o.limits.PIDs)
	if err := applyGPUs(o, t); err != nil {
		return err
	}
	t.Insecure = t.Insecure || o.insecure
	t.NoWait = t.NoWait || o.noWait
	t.Keep = t.Keep || o.keep
	t.Ephemeral = t.Ephemeral || o.ephemeral
	t.Network.Hosts = append(t.Network.Hosts, o.addHost...)
	for _, l := range o.labels {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return invalid("run: --label: %q is no label: write K=V", l)
		}
		if t.Labels == nil {
			t.Labels = map[string]string{}
		}
		t.Labels[k] = v
	}
	return nil
}

// checkName refuses names that a user could hardly write where a task is asked for. Documents may have others.
func checkName(name string) error {
	odd := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '/' }
	if name == "" || name[0] == '-' || strings.ContainsFunc(name, odd) {
		return invalid("run: --name: %q is no name: write letters, digits, and . _ - between them, as in align-1", name)
	}
	return nil
}

// leastSize is below what any size can mean, in bytes: its unit was left out.
const leastSize = 4096

// replace sets what a flag is about, if it has a value. The command line wins over a document, and the
// document over settings.
func replace[T comparable](o *runOptions, flag string, to *T, v T) {
	var zero T
	if v != zero && (*to == zero || o.changed(flag)) {
		*to = v
	}
}

// replaceLimit is replace of a limit: on the command line, 0 is none.
func replaceLimit[T comparable](o *runOptions, flag string, to *T, v T) {
	if o.changed(flag) {
		*to = v
	}
	replace(o, flag, to, v)
}
