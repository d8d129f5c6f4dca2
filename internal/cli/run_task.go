package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
	"github.com/berth-project/berth/tes"
	"github.com/berth-project/berth/tes/document"
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

// applyFiles sets inputs, outputs and volumes.
func (a *app) applyFiles(o *runOptions, t *berth.Task) error {
	for _, s := range o.inputs {
		p, err := parsePair(s, "type", "name")
		if err != nil {
			return fmt.Errorf("run: --input: %w", err)
		}
		in := berth.Input{Name: p.options["name"], URL: a.hostURL(p.src), Path: p.dst, Type: fileType(p)}
		if strings.HasSuffix(p.src, "/") {
			in.Type = berth.Directory
		} else if strings.HasSuffix(p.dst, "/") && p.dst != "/" {
			in.Path = path.Join(p.dst, path.Base(p.src)) // as cp(1) does
		}
		in.Path = tes.CleanPath(in.Path)
		t.Inputs = append(t.Inputs, in)
	}
	for _, s := range o.outputs {
		p, err := parsePair(s, "type", "name", "prefix", "optional!")
		if err != nil {
			return fmt.Errorf("run: --output: %w", err)
		}
		t.Outputs = append(t.Outputs, a.output(p))
	}
	for _, s := range o.volumes {
		v, err := parseVolume(s)
		if err != nil {
			return err
		}
		t.Volumes = append(t.Volumes, v)
	}
	return nil
}

func fileType(p pair) berth.FileType { return berth.FileType(strings.ToUpper(p.options["type"])) }

func (a *app) output(p pair) berth.Output {
	out := berth.Output{Name: p.options["name"], URL: a.hostURL(p.src), Path: tes.CleanPath(p.dst), Type: fileType(p), PathPrefix: p.options["prefix"], Optional: p.on("optional")}
	switch {
	case tes.IsPattern(p.dst):
		if out.PathPrefix == "" {
			before := p.dst[:strings.IndexAny(p.dst, "*?[")]
			out.PathPrefix = path.Dir(before + "x")
		}
	case strings.HasSuffix(p.dst, "/") && p.dst != "/":
		out.Type = berth.Directory
	case strings.HasSuffix(out.URL, "/") && out.Type != berth.Directory:
		out.URL += path.Base(p.dst) // as cp(1) does
	}
	return out
}

// parseVolume reads CONTAINER[:SIZE], or dst=CONTAINER,size=SIZE.
func parseVolume(s string) (berth.Volume, error) {
	dst, size, err := sized(s)
	if err != nil {
		return berth.Volume{}, fmt.Errorf("run: --volume: %w", err)
	}
	return berth.Volume{Path: tes.CleanPath(dst), Size: size}, nil
}

// sized reads an absolute container path and perhaps a size.
func sized(s string) (dst string, size int64, err error) {
	text := ""
	if isLong(s) {
		p, err := parseLong(s, []string{"size"})
		if err != nil {
			return "", 0, err
		}
		dst, text = p.dst, p.options["size"]
		if p.src != "" {
			return "", 0, invalid("%q: it has no source on this host; see --mount", s)
		}
	} else {
		dst = s
		if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasPrefix(s[i:], ":/") {
			dst, text = s[:i], strings.TrimPrefix(s[i+1:], "size=")
			if text == "" {
				return "", 0, invalid("%q: there is no size after the colon", s)
			}
		} else if i >= 0 && strings.HasPrefix(s, "/") {
			return "", 0, invalid("%q: it has no source on this host; see --mount", s)
		}
	}
	if !strings.HasPrefix(dst, "/") {
		return "", 0, invalid("%q: %q is not an absolute path in the container", s, dst)
	}
	if text != "" {
		size, err = berth.ParseSize(text)
	}
	return dst, size, err
}

// applySteps sets what each step has.
func (a *app) applySteps(o *runOptions, t *berth.Task) error {
	env, err := a.environment(o)
	if err != nil {
		return err
	}
	var more berth.Step
	if err := a.applyLists(o, &more); err != nil {
		return err
	}
	for i := range t.Steps {
		s := &t.Steps[i]
		if o.changed("env") || o.changed("env-file") {
			s.Env = mergeEnv(s.Env, env)
		} else {
			s.Env = mergeEnv(env, s.Env)
		}
		replace(o, "workdir", &s.WorkingDir, tes.CleanPath(o.workdir))
		if o.given("entrypoint") {
			s.Entrypoint = []string{}
			if o.entrypoint != "" {
				s.Entrypoint = []string{o.entrypoint}
			}
		}
		s.Fallbacks = append(s.Fallbacks, o.fallbacks...)
		s.OpenStdin = s.OpenStdin || o.interactive
		s.TTY = s.TTY || o.tty
		replace(o, "shm-size", &s.ShmSize, o.shmSize)
		replace(o, "stop-signal", &s.StopSignal, o.stopSignal)
		s.NoInit = s.NoInit || o.noInit
		replace(o, "user", &s.User, o.user)
		s.ReadOnly = s.ReadOnly || o.readOnly
		replace(o, "platform", &s.Platform, o.platform)
		replace(o, "runtime", &s.Runtime, o.runtime)
		replace(o, "security-opt", &s.Seccomp, more.Seccomp)
		replace(o, "security-opt", &s.AppArmor, more.AppArmor)
		if len(more.SELinux) > 0 && (len(s.SELinux) == 0 || o.changed("security-opt")) {
			s.SELinux = more.SELinux // one label
		}
		s.Groups = append(s.Groups, o.groups...)
		s.CapAdd = append(s.CapAdd, o.capAdd...)
		s.CapDrop = append(s.CapDrop, o.capDrop...)
		s.Mounts = append(s.Mounts, more.Mounts...)
		s.Devices = append(s.Devices, more.Devices...)
		s.Ulimits = append(s.Ulimits, more.Ulimits...)
		for k, v := range more.Sysctls {
			if s.Sysctls == nil {
				s.Sysctls = map[string]string{}
			}
			s.Sysctls[k] = v
		}
	}
	return nil
}

// applyLists reads the flags that need reading.
func (a *app) applyLists(o *runOptions, s *berth.Step) error {
	for _, text := range o.mounts {
		p, err := parsePair(text, "ro!", "rw!", "readonly!")
		if err != nil {
			return fmt.Errorf("run: --mount: %w", err)
		}
		if strings.Contains(p.src, "://") {
			return invalid("run: --mount: %q: only a path of this host can be mounted; see --input for URLs", text)
		}
		s.Mounts = append(s.Mounts, berth.Mount{Source: filepath.Clean(a.abs(p.src)), Target: tes.CleanPath(p.dst), ReadOnly: p.on("ro") || p.on("readonly")})
	}
	for _, text := range o.tmpfs {
		dst, size, err := sized(text)
		if err != nil {
			return fmt.Errorf("run: --tmpfs: %w", err)
		}
		s.Mounts = append(s.Mounts, berth.Mount{Type: berth.MountTmpfs, Target: tes.CleanPath(dst), Size: size})
	}
	for _, text := range o.devices {
		d, err := tes.ParseDevice(text)
		if err != nil {
			return fmt.Errorf("run: --device: %w", err)
		}
		s.Devices = append(s.Devices, d)
	}
	for _, text := range o.ulimits {
		u, err := tes.ParseUlimit(text)
		if err != nil {
			return fmt.Errorf("run: --ulimit: %w", err)
		}
		s.Ulimits = append(s.Ulimits, u)
	}
	for _, text := range o.sysctls {
		k, v, ok := strings.Cut(text, "=")
		if !ok {
			return invalid("run: --sysctl: %q is no kernel parameter: write K=V", text)
		}
		if s.Sysctls == nil {
			s.Sysctls = map[string]string{}
		}
		s.Sysctls[k] = v
	}
	for _, text := range o.securityOpt {
		if err := a.applySecurity(text, s); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) applySecurity(text string, s *berth.Step) error {
	key, value, _ := strings.Cut(text, "=")
	switch {
	case text == "no-new-privileges", text == "no-new-privileges=true":
		return nil // always so
	case !slices.Contains([]string{"seccomp", "apparmor", "label"}, key):
		return unsupported("run: --security-opt: %q: only seccomp=FILE|unconfined, apparmor=PROFILE|unconfined and label=KEY:VALUE|disable are known", text)
	case value == "":
		return invalid("run: --security-opt: %q names no %s", text, map[string]string{"seccomp": "file", "apparmor": "profile", "label": "label"}[key])
	case key == "apparmor":
		s.AppArmor = value
		return nil
	case key == "label":
		s.SELinux = append(s.SELinux, value)
		return nil
	case value == berth.Unconfined:
		s.Seccomp = value
		return nil
	}
	data, err := readFile(a.abs(value), 16<<20)
	if err != nil {
		return invalid("run: --security-opt: read seccomp profile: %v", err)
	}
	if _, err := document.Parse(value, data, document.JSON); err != nil {
		return fmt.Errorf("run: --security-opt: seccomp profile: %w", err)
	}
	s.Seccomp = string(bytes.TrimSpace(data))
	return nil
}

// environment is what --env-file and --env say, in that order.
func (a *app) environment(o *runOptions) ([]string, error) {
	var env []string
	for _, name := range o.envFile {
		data, err := readFile(a.abs(name), 16<<20)
		if err != nil {
			return nil, invalid("run: --env-file: %v", err)
		}
		lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
		lines.Buffer(nil, 16<<20)
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimLeft(strings.TrimSuffix(lines.Text(), "\r"), " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			key, _, _ := strings.Cut(line, "=")
			if key == "" || strings.ContainsAny(key, " \t") {
				return nil, invalid("run: --env-file: %s:%d: %q is no variable: write K=V", name, n, line)
			}
			env = a.appendEnv(env, line)
		}
		if err := lines.Err(); err != nil {
			return nil, invalid("run: --env-file: %s: %v", name, err)
		}
	}
	for _, e := range o.env {
		if e == "" || e[0] == '=' {
			return nil, invalid("run: --env: %q is no variable: write K=V", e)
		}
		env = a.appendEnv(env, e)
	}
	return env, nil
}

// appendEnv appends K=V; K alone takes the host's value, and is nothing where the host has none.
func (a *app) appendEnv(env []string, e string) []string {
	if strings.Contains(e, "=") {
		return append(env, e)
	}
	if v, ok := a.lookupEnv(e); ok {
		return append(env, e+"="+v)
	}
	return env
}

// mergeEnv lets later values win and sorts by name, as documents do.
func mergeEnv(env, more []string) []string {
	values := map[string]string{}
	for _, e := range slices.Concat(env, more) {
		k, _, _ := strings.Cut(e, "=")
		values[k] = e
	}
	var merged []string
	for _, e := range values {
		merged = append(merged, e)
	}
	slices.Sort(merged)
	return merged
}

// streamDir is where files of this host lie in the container that are its standard streams.
const streamDir = "/.berth"

// applyStreams sets the files of standard streams. A path that the task's inputs, mounts, volumes or outputs
// cover is the container's; any other is this host's, and becomes an input or an output.
func (a *app) applyStreams(o *runOptions, t *berth.Task) error {
	if o.file != "" {
		return nil
	}
	s := &t.Steps[0]
	if o.stdout != "" && o.stderr != "" && !covers(t, o.stdout) && path.Clean(a.hostURL(o.stdout)) == path.Clean(a.hostURL(o.stderr)) {
		return invalid("run: --stdout and --stderr: both name %s, and one would be lost; name two files, or have the task write both into one: --stdout %s IMAGE sh -c 'COMMAND 2>&1'", o.stdout, o.stdout)
	}
	for _, stream := range []struct {
		name, file string
		to         *string
	}{{"stdin", o.stdin, &s.Stdin}, {"stdout", o.stdout, &s.Stdout}, {"stderr", o.stderr, &s.Stderr}} {
		inside := path.Join(streamDir, stream.name)
		switch {
		case stream.file == "":
		case covers(t, stream.file):
			*stream.to = tes.CleanPath(stream.file)
		case stream.name == "stdin":
			t.Inputs = append(t.Inputs, berth.Input{URL: a.hostURL(stream.file), Path: inside, Type: berth.File})
			*stream.to = inside
		default:
			out := berth.Output{URL: a.hostURL(stream.file), Path: inside, Type: berth.File}
			if st, err := os.Stat(out.URL); err == nil && !st.IsDir() {
				if _, err := staging.Target(out.URL, nil); err != nil {
					return &quietError{fmt.Sprintf("--%s: cannot write %s: %v; without the flag the task's output is berth's own", stream.name, stream.file, err), berth.ErrConflict}
				}
			}
			t.Outputs = append(t.Outputs, out)
			*stream.to = inside
		}
	}
	return nil
}

// covers reports whether an absolute path lies in the container, by what the task puts there.
func covers(t *berth.Task, p string) bool {
	if !path.IsAbs(p) {
		return false
	}
	p = path.Clean(p)
	var trees, files []string
	for _, v := range t.Volumes {
		trees = append(trees, v.Path)
	}
	for _, in := range t.Inputs {
		trees = append(trees, in.Path)
	}
	for _, m := range t.Steps[0].Mounts {
		trees = append(trees, m.Target)
	}
	for _, out := range t.Outputs {
		if files = append(files, out.Path); out.PathPrefix != "" {
			trees = append(trees, out.PathPrefix)
		} else if out.Type == berth.Directory {
			trees = append(trees, out.Path)
		}
	}
	return slices.Contains(files, p) || slices.ContainsFunc(trees, func(tree string) bool {
		return p == tree || strings.HasPrefix(p, strings.TrimSuffix(tree, "/")+"/")
	})
}
