package tes_test

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/tes"
	"github.com/berth-project/berth/tes/document"
)

const alignYAML = `# two steps that share a scratch volume
name: align
tags: {project: lambda, empty: null}
executors:
  - image: bio:1
    command: [sh, -c, "bowtie2 -x \"$I\" > /work/a.sam"]
    workdir: /work
    env:
      THREADS: "2"
      A: a=b
    stderr: /work/log
  - image: bio:1
    command:
      - samtools
      - sort
    ignore_error: true
    entrypoint: []
    user: "1000:1000"
    mounts:
      - {source: ref, target: /ref, read_only: true}
      - {type: tmpfs, target: /t, size: 64MiB}
    ulimits: [nofile=1024:2048, core=0]
    devices: ["/dev/fuse:/dev/f:rw"]
    sysctls: {net.core.somaxconn: "1024"}
inputs:
  - {url: reads/1.fq, path: /in/1.fq}
  - url: https://example.org/x
    content: |
      one
      two
    path: /in/text
outputs:
  - url: results/
    path: /work/*.bam
    path_prefix: /work
  - {url: /abs/flagstat.txt, path: /work/flagstat.txt, path_prefix: /ignored}
volumes:
  - /work
  - {path: /scratch, size: 10GiB, mode: "1755"}
resources:
  cpu_cores: 1.5
  ram_gb: 0.5
  disk_gb: 20
  pids: 100
  backend_parameters: {VM_Size: big}
timeout: 1h30m
grace: 0s
network: {mode: bridge, hosts: ["db:10.0.0.1"]}
`

func alignTask() berth.Task {
	return berth.Task{
		Name:   "align",
		Labels: map[string]string{"project": "lambda", "empty": ""},
		Steps: []berth.Step{{
			Image: "bio:1", Command: []string{"sh", "-c", `bowtie2 -x "$I" > /work/a.sam`}, WorkingDir: "/work",
			Env: []string{"A=a=b", "THREADS=2"}, Stderr: "/work/log",
		}, {
			Image: "bio:1", Command: []string{"samtools", "sort"}, Entrypoint: []string{}, IgnoreError: true, User: "1000:1000",
			Mounts: []berth.Mount{
				{Source: "/home/me/ref", Target: "/ref", ReadOnly: true},
				{Type: berth.MountTmpfs, Target: "/t", Size: 64 << 20},
			},
			Ulimits: []berth.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}, {Name: "core"}},
			Devices: []berth.Device{{Host: "/dev/fuse", Container: "/dev/f", Permissions: "rw"}},
			Sysctls: map[string]string{"net.core.somaxconn": "1024"},
		}},
		Inputs: []berth.Input{
			{URL: "/home/me/reads/1.fq", Path: "/in/1.fq"},
			{Content: new("one\ntwo\n"), Path: "/in/text"},
		},
		Outputs: []berth.Output{
			{URL: "/home/me/results/", Path: "/work/*.bam", PathPrefix: "/work"},
			{URL: "/abs/flagstat.txt", Path: "/work/flagstat.txt"},
		},
		Volumes:   []berth.Volume{{Path: "/work"}, {Path: "/scratch", Size: 10 << 30, Mode: 0o755 | 1<<20}},
		Resources: berth.Resources{Limits: berth.Limits{CPU: 1.5, Memory: 512 << 20, Disk: 20 << 30, PIDs: 100}},
		Timeout:   90 * time.Minute,
		Network:   berth.Network{Mode: berth.NetworkBridge, Hosts: []string{"db:10.0.0.1"}},
		CallerDir: "/home/me",
	}
}

func TestParse(t *testing.T) {
	got, warnings, err := tes.Parse([]byte(alignYAML), tes.Options{Name: "task.yaml", Dir: "/home/me"})
	if err != nil {
		t.Fatal(err)
	}
	if want := alignTask(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	wantWarnings := []string{
		"inputs[1] has both url and content; content is used",
		"resources.backend_parameters.VM_Size has no effect: berth knows no such parameter",
	}
	if !reflect.DeepEqual(warnings, wantWarnings) {
		t.Errorf("warnings %q, want %q", warnings, wantWarnings)
	}
}

func TestRoundTrip(t *testing.T) {
	full := alignTask()
	full.Description = "every\nfield: \"of\" # it — é \u2028 \U0001F980 \x7f\t"
	full.Hostname, full.CgroupParent = "node-1.a", "/batch/job7"
	full.Pull, full.Insecure, full.NoWait, full.Keep, full.RunAgain = berth.PullNever, true, true, true, true
	full.Network.Ports = []berth.Port{
		{Container: 80},
		{Host: 8080, Container: 80, Protocol: "udp"},
		{HostIP: "127.0.0.1", Container: 81},
		{HostIP: "::1", Host: 1, Container: 82, Protocol: "tcp"},
	}
	full.Resources.Zones, full.Resources.Preemptible = []string{"a", "no"}, true
	full.Resources.GPUs = json.RawMessage(`[{"count":2,"model":"H200"},"shared,memory=8GiB"]`)
	full.Resources.Backend = map[string]string{"queue": "long"}
	full.Resources.Memory, full.Resources.Disk, full.Resources.PIDs = 4e9+1, 1<<53+1, -1
	full.Inputs = append(full.Inputs, berth.Input{Name: "n", URL: "file:///d", Path: "/d", Type: berth.Directory}, berth.Input{Content: new(""), Path: "/e"})
	full.Outputs[0].Name, full.Outputs[0].Type, full.Outputs[0].Optional = "x", berth.File, true
	full.Volumes = append(full.Volumes, berth.Volume{Path: "/up", CopyUp: true})
	s := &full.Steps[0]
	s.Stdin, s.Stdout, s.Groups, s.ShmSize, s.ReadOnly, s.NoInit, s.TTY = "/in/1.fq", "/work/o", []string{"10", "disk"}, 1<<20, true, true, true
	s.CapAdd, s.CapDrop, s.Seccomp, s.Runtime, s.Platform, s.StopSignal = []string{"NET_ADMIN"}, []string{"ALL"}, `{"defaultAction":"SCMP_ACT_ALLOW"}`, "crun", "linux/arm64", "INT"
	s.AppArmor, s.SELinux = "docker-default", []string{"type:container_t", "level:s0:c1,c2"}
	full.Steps[1].OpenStdin = true
	full.Steps[1].Command = nil

	strange := berth.Task{Grace: -1, Steps: []berth.Step{{Image: "i", Command: []string{
		"", "true", "No", "~", "1.5", "0x10", "- a", "a: b", "a #b", "*x", "&x", "!x", "%x", "'", `"`, "\\", "{", "[", "?", "|", ">", "@", "`", ":", "a:",
		" a", "a ", "\n", "a\n\nb\n", "2026-01-02", "<<", "=", "---", "...", "e1", "_", "\x01\x1b", ".5", "+1", "12e3", ".inf", "null", "\u00a0", "\ufeff",
	}, Entrypoint: []string{"/e"}}}}

	for name, task := range map[string]berth.Task{"all": full, "least": {Grace: -1, Steps: []berth.Step{{Image: "i"}}}, "strange": strange} {
		for _, format := range []document.Format{document.JSON, document.YAML} {
			data, err := tes.Marshal(task, format)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := tes.Parse(data, tes.Options{Name: "x." + string(format), Dir: task.CallerDir, BackendParameters: []string{"queue"}})
			if err != nil {
				t.Errorf("%s as %s: %v\n%s", name, format, err, data)
			} else if !reflect.DeepEqual(got, task) {
				t.Errorf("%s as %s:\ngot  %+v\nwant %+v\n%s", name, format, got, task, data)
			}
		}
	}
}

func TestMarshalRefusesWhatIsNotText(t *testing.T) {
	_, err := tes.Marshal(berth.Task{Steps: []berth.Step{{Image: "i", Command: []string{"\xff"}}}}, document.JSON)
	if !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}

func TestParseTolerates(t *testing.T) {
	least := berth.Task{Grace: -1, Steps: []berth.Step{{Image: "i", Command: []string{"true"}}}}
	with := func(change func(*berth.Task)) berth.Task {
		task := least
		task.Steps = []berth.Step{least.Steps[0]}
		change(&task)
		return task
	}
	const executors = `"executors":[{"image":"i","command":["true"]}]`
	for name, c := range map[string]struct {
		in   string
		want berth.Task
	}{
		"nulls":       {`{` + executors + `,"name":null,"inputs":null,"resources":{"cpu_cores":null,"backend_parameters":{"x":null}}}`, least},
		"null tags":   {`{` + executors + `,"tags":{"a":null}}`, with(func(t *berth.Task) { t.Labels = map[string]string{"a": ""} })},
		"empty lists": {`{` + executors + `,"inputs":[],"outputs":[],"volumes":[],"tags":{},"resources":{}}`, least},
		"camel case": {`{` + executors + `,"resources":{"cpuCores":2,"ramGb":1,"diskGb":2},"noWait":true}`, with(func(t *berth.Task) {
			t.Resources.CPU, t.Resources.Memory, t.Resources.Disk, t.NoWait = 2, 1<<30, 2<<30, true
		})},
		"camel case 2": {`{"executors":[{"image":"i","command":["true"],"ignoreError":true}],"outputs":[{"path":"/o/*","pathPrefix":"/o","url":"/x"}]}`, with(func(t *berth.Task) {
			t.Steps[0].IgnoreError = true
			t.Outputs = []berth.Output{{URL: "/x", Path: "/o/*", PathPrefix: "/o"}}
		})},
		"size strings":    {`{` + executors + `,"resources":{"ram_gb":"512MiB","disk_gb":"4G"}}`, with(func(t *berth.Task) { t.Resources.Memory, t.Resources.Disk = 512<<20, 4e9 })},
		"a byte more":     {`{` + executors + `,"resources":{"ram_gb":1.1}}`, with(func(t *berth.Task) { t.Resources.Memory = 1181116007 })},
		"content only":    {`{` + executors + `,"inputs":[{"content":"","path":"/a","streamable":true}]}`, with(func(t *berth.Task) { t.Inputs = []berth.Input{{Content: new(""), Path: "/a"}} })},
		"byte order mark": {"\ufeff{" + executors + `}`, least},
		"untidy paths": {`{"executors":[{"image":"i","command":["true"],"workdir":"/w/./x/"}],"volumes":["/v//w/"],"inputs":[{"url":"/u//","path":"/in/"}]}`, with(func(t *berth.Task) {
			t.Steps[0].WorkingDir, t.Volumes, t.Inputs = "/w/x", []berth.Volume{{Path: "/v/w"}}, []berth.Input{{URL: "/u//", Path: "/in"}}
		})},
		"no command": {`{"executors":[{"image":"i"}]}`, with(func(t *berth.Task) { t.Steps[0].Command = nil })},
		"anchors":    {"x: &s {image: i, command: ['true']}\nexecutors: [*s]\n", berth.Task{}},
		"merge":      {"executors:\n- &s\n  image: i\n  command: ['true']\n- <<: *s\n  image: j\n", with(func(t *berth.Task) { t.Steps = append(t.Steps, berth.Step{Image: "j", Command: []string{"true"}}) })},
		"alias":      {"executors:\n- &s\n  image: i\n  command: ['true']\n- *s\n", with(func(t *berth.Task) { t.Steps = append(t.Steps, t.Steps[0]) })},
	} {
		got, _, err := tes.Parse([]byte(c.in), tes.Options{})
		if name == "anchors" {
			if err == nil {
				t.Errorf("%s: an unknown key was read", name)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const executors = "executors: [{image: i, command: [x]}]\n"
	for _, c := range []struct{ name, in, want string }{
		{"", "", "it is empty"},
		{"t.yaml", "# nothing\n", "t.yaml: it is empty"},
		{"t.json", "{", "t.json:1:2: it is not JSON: unexpected end of JSON input"},
		{"t.json", "{\n  \"name\": 'x'\n}", "t.json:2:11: it is not JSON: invalid character '\\'' looking for beginning of value"},
		{"t.json", `{"name": "a",}`, "t.json:1:14: it is not JSON: invalid character '}' looking for beginning of object key string"},
		{"t.json", `{"name": "a"} x`, "t.json:1:15: it is not JSON: invalid character 'x' after top-level value"},
		{"t.json", "{\"é\": 1, \"é\": 2}", `t.json:1:10: the key "é" was given before, in line 1`},
		{"t.json", "name: x", "t.json:1:2: it is not JSON: invalid character 'a' in literal null (expecting 'u')"},
		{"t.json", "{\"a\": \"\xff\"}", "t.json:1:8: byte 0xff is not UTF-8"},
		{"t.yaml", "name: a\nname: b\n", `t.yaml:2:1: the key "name" was given before, in line 1`},
		{"t.yaml", "name: [a\n", "t.yaml:1:7: it is not YAML: sequence end token ']' not found"},
		{"t.yaml", "name: a\n--- \nname: b\n", "t.yaml:3:1: it holds more than one document"},
		{"t.yaml", "name: !!str 1\n", "t.yaml:1:7: tags, such as !!str, are not read"},
		{"t.yaml", "name: *x\n", "t.yaml:1:7: *x names no anchor above it"},
		{"t.yaml", "- a\n", "t.yaml:1:1: it is a list, and must be a map"},
		{"t.yaml", "nam: x\n", `t.yaml:1:1: nam: there is no such key (did you mean "name"?)`},
		{"t.json", "{\n \"resources\": {\"ramgb\": 1}}", "t.json:1:1: executors: a task has one executor at least\n" + `t.json:2:16: resources.ramgb: there is no such key (did you mean "ram_gb"?)`},
		{"t.yaml", "xylophone: x\n", "t.yaml:1:1: xylophone: there is no such key"},
		{"t.yaml", executors + "resources: {ram_gb: 1, ramGb: 2}", `t.yaml:2:24: resources.ramGb: it was given before, as "ram_gb"`},
		{"t.yaml", executors + "id: x\n", "t.yaml:2:5: id: berth sets it; leave it out"},
		{"t.yaml", "name: x\n", "t.yaml:1:1: executors: a task has one executor at least"},
		{"t.yaml", "executors: []\n", "t.yaml:1:12: executors: a task has one executor at least"},
		{"t.yaml", "executors: {image: x}\n", "t.yaml:1:12: executors: it is a map, and must be a list"},
		{"t.yaml", "executors:\n- command: [x]\n", "t.yaml:2:3: executors[0].image: an executor names an image"},
		{"t.yaml", "executors:\n- image: i\n  command: []\n", "t.yaml:3:12: executors[0].command: it is empty; leave it out for the image's own"},
		{"t.yaml", "executors:\n- image: i\n  command: [\"\"]\n", "t.yaml:3:12: executors[0].command: its first word is empty; it names the program"},
		{"t.yaml", "executors:\n- image: i\n  command: ls\n", `t.yaml:3:12: executors[0].command: it is a string, and must be a list: write ["ls"]`},
		{"t.yaml", "executors:\n- image: i\n  command: ls /tmp | wc\n", `t.yaml:3:12: executors[0].command: it is a string, and must be a list: write its words one by one, ["ls", ...], or [sh, -c, "ls /tmp | wc"]`},
		{"t.yaml", "executors:\n- image: i\n  command: [sleep, 5]\n", `t.yaml:3:20: executors[0].command[1]: it is a number, and must be a string: write "5", in quotes`},
		{"t.yaml", "executors:\n- image: i\n  env: {PORT: 80}\n", `t.yaml:3:15: executors[0].env.PORT: it is a number, and must be a string: write "80", in quotes`},
		{"t.yaml", "executors:\n- image: i\n  env: [PORT=80]\n", "t.yaml:3:8: executors[0].env: it is a list, and must be a map"},
		{"t.yaml", "executors:\n- image: i\n  workdir: rel\n", `t.yaml:3:12: executors[0].workdir: "rel" is not an absolute path`},
		{"t.yaml", "executors:\n- image: i\n  stdin: rel\n", `t.yaml:3:10: executors[0].stdin: "rel" is not an absolute path`},
		{"t.yaml", "executors:\n- image: i\n  stdout: /a/../b\n", `t.yaml:3:11: executors[0].stdout: "/a/../b" has .. in it`},
		{"t.yaml", "executors:\n- image: i\n  cap_add: [NET_ADMN]\n", `t.yaml:3:13: executors[0].cap_add[0]: there is no capability "NET_ADMN" (did you mean "NET_ADMIN"?)`},
		{"t.yaml", "executors:\n- image: i\n  ulimits: [nofiles=3]\n", `t.yaml:3:13: executors[0].ulimits[0]: ulimit "nofiles=3": invalid: there is no limit "nofiles" (did you mean "nofile"?)`},
		{"t.yaml", "executors:\n- image: i\n  devices: [fuse]\n", `t.yaml:3:13: executors[0].devices[0]: device "fuse": invalid: write HOST[:CONTAINER][:PERMISSIONS], absolute paths and letters of rwm`},
		{"t.yaml", "executors:\n- image: i\n  stop_signal: HUPP\n", `t.yaml:3:16: executors[0].stop_signal: "HUPP" is no signal: write its name or number, as in TERM, SIGRTMIN+3 or 15`},
		{"t.yaml", "executors:\n- image: i\n  platform: amd64\n", `t.yaml:3:13: executors[0].platform: "amd64" is no platform: write OS/ARCH[/VARIANT], as in linux/amd64`},
		{"t.yaml", "executors:\n- image: i\n  mounts: [{source: /a}]\n", "t.yaml:3:12: executors[0].mounts[0].target: it is missing; it is an absolute path in the container"},
		{"t.yaml", executors + "inputs: [{path: /a}]\n", "t.yaml:2:10: inputs[0].url: an input has a url or content"},
		{"t.yaml", executors + "inputs: [{url: /a}]\n", "t.yaml:2:10: inputs[0].path: it is missing; it is an absolute path in the container"},
		{"t.yaml", executors + "inputs: [{url: a, path: /a}]\n", `t.yaml:2:16: inputs[0].url: "a" is neither a URL nor an absolute path`},
		{"t.yaml", executors + "inputs: [{url: /a, path: /proc}]\n", "t.yaml:2:26: inputs[0].path: nothing can be put at /proc: /proc is the container's own; choose a path outside it"},
		{"t.yaml", executors + "inputs: [{url: /a, path: //proc/./x/}]\n", "t.yaml:2:26: inputs[0].path: nothing can be put at /proc/x: /proc is the container's own; choose a path outside it"},
		{"t.yaml", executors + "volumes: [/sys/]\n", "t.yaml:2:11: volumes[0].path: nothing can be put at /sys: it is the container's own; choose another path, or one below it"},
		{"t.yaml", "executors:\n- image: i\n  mounts: [{source: /a, target: /dev}]\n", "t.yaml:3:33: executors[0].mounts[0].target: nothing can be put at /dev: it is the container's own; choose another path, or one below it"},
		{"t.yaml", executors + "timeout: 1s\npull: often\ntimeout: 2s\n", "t.yaml:4:1: the key \"timeout\" was given before, in line 2"},
		{"t.yaml", executors + "inputs: [{url: /a, path: /}]\n", "t.yaml:2:26: inputs[0].path: it cannot be the root of the container"},
		{"t.yaml", executors + "inputs: [{url: /a, path: /a, type: file}]\n", `t.yaml:2:36: inputs[0].type: "file" is not one of FILE, DIRECTORY`},
		{"t.yaml", executors + "inputs: [{url: /a, path: /a}, {url: /b, path: /a}]\n", "t.yaml:2:47: inputs[1].path: /a is also the path of inputs[0]"},
		{"t.yaml", executors + "outputs: [{path: /a}]\n", "t.yaml:2:11: outputs[0].url: an output has a url: where it is to be put"},
		{"t.yaml", executors + "outputs: [{path: /o/*.txt, url: /x}]\n", "t.yaml:2:11: outputs[0].path_prefix: path is a pattern; say with path_prefix what is taken off each match before it is appended to url"},
		{"t.yaml", executors + "outputs: [{path: /o/*.txt, url: /x, path_prefix: /p}]\n", `t.yaml:2:50: outputs[0].path_prefix: "/p" is not a directory in which "/o/*.txt" begins`},
		{"t.yaml", executors + "outputs: [{path: '/o/[', url: /x, path_prefix: /o}]\n", `t.yaml:2:18: outputs[0].path: "/o/[" is no pattern: a [ is never closed, or holds nothing`},
		{"t.yaml", executors + "volumes: [rel]\n", `t.yaml:2:11: volumes[0].path: "rel" is not an absolute path`},
		{"t.yaml", executors + "volumes: [{path: /v, size: 1XB}]\n", `t.yaml:2:28: volumes[0].size: size "1XB": invalid: unknown unit "XB" at character 2; a size is a number and a unit, as in 512MiB, 4G or 1.5GiB`},
		{"t.yaml", executors + "volumes: [{path: /v, mode: '9'}]\n", `t.yaml:2:28: volumes[0].mode: "9" is no mode: write octal digits in quotes, such as "1777"`},
		{"t.yaml", executors + "resources: {cpu_cores: -1}\n", "t.yaml:2:24: resources.cpu_cores: it is negative"},
		{"t.yaml", executors + "resources: {cpu_cores: 0.001}\n", "t.yaml:2:24: resources.cpu_cores: 0.001 is less than the least that can be given, 0.01"},
		{"t.yaml", executors + "resources: {cpu_cores: .inf}\n", "t.yaml:2:24: .inf is no number that a document can hold"},
		{"t.yaml", executors + "resources: {cpu_cores: two}\n", "t.yaml:2:24: resources.cpu_cores: it is a string, and must be a number"},
		{"t.yaml", executors + "resources: {ram_gb: -2}\n", "t.yaml:2:21: resources.ram_gb: it is negative"},
		{"t.yaml", executors + "resources: {ram_gb: 1.0e+30}\n", "t.yaml:2:21: resources.ram_gb: 1e+30 GiB are out of range"},
		{"t.yaml", executors + "resources: {pids: 1.5}\n", "t.yaml:2:19: resources.pids: 1.5 is not a whole number, or out of range"},
		{"t.yaml", executors + "resources: {gpus: many}\n", `t.yaml:2:19: resources.gpus: GPUs "many": "many" is neither a count nor an id; write a number, all, a UUID, or KEY=VALUE with one of count, device, vendor, driver, model, memory, mig, shared, allow_busy, preflight, capabilities, options`},
		{"t.yaml", executors + "resources: {gpus: [1, {modell: H200}]}\n", `t.yaml:2:19: resources.gpus: [1]: GPUs: there is no key "modell"; there are count, device, vendor, driver, model, memory, mig, shared, allow_busy, preflight, capabilities, options`},
		{"t.yaml", executors + "resources: {backend_parameters: {X: y}, backend_parameters_strict: true}\n", "t.yaml:2:33: resources.backend_parameters.X: berth knows no such parameter, and backend_parameters_strict is set"},
		{"t.yaml", executors + "timeout: 90\n", `t.yaml:2:10: timeout: it is a number, and must be a duration with its unit: write "90s"`},
		{"t.yaml", executors + "timeout: '90'\n", `t.yaml:2:10: timeout: duration "90": invalid: there is no unit after "90"; a duration is written as in 90s, 1h30m or 2d`},
		{"t.yaml", executors + "network: brigde\n", `t.yaml:2:10: network: "brigde" is not one of none, bridge, host (did you mean "bridge"?)`},
		{"t.yaml", executors + "network: {hosts: [db]}\n", `t.yaml:2:19: network.hosts[0]: "db" is no host: write NAME:ADDRESS`},
		{"t.yaml", executors + "hostname: a_b!\n", `t.yaml:2:11: hostname: "a_b!" is no host name: letters, digits, hyphens and dots`},
		{"t.yaml", executors + "pull: often\n", `t.yaml:2:7: pull: "often" is not one of always, missing, never`},
	} {
		_, _, err := tes.Parse([]byte(c.in), tes.Options{Name: c.name})
		if err == nil || err.Error() != c.want {
			t.Errorf("%q:\ngot  %v\nwant %s", c.in, err, c.want)
			continue
		}
		kind := berth.ErrInvalid
		if strings.Contains(c.want, "reserved") || strings.Contains(c.want, "no such parameter") {
			kind = berth.ErrUnsupported
		}
		if _, ok := errors.AsType[*document.Error](err); !ok || !errors.Is(err, kind) {
			t.Errorf("%q: %#v is not a document.Error of kind %v", c.in, err, kind)
		}
	}
}

func TestParseBoundsWhatADocumentCosts(t *testing.T) {
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := '1'; i < '9'; i++ {
		laughs += strings.NewReplacer("N", string(i), "P", string(i-1)).Replace("aN: &aN [*aP,*aP,*aP,*aP,*aP,*aP,*aP,*aP,*aP]\n")
	}
	for name, in := range map[string]string{
		"aliases of aliases": laughs,
		"deep JSON":          `{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}",
		"deep YAML":          "a: " + strings.Repeat("[", 500) + strings.Repeat("]", 500),
	} {
		_, _, err := tes.Parse([]byte(in), tes.Options{})
		if err == nil || !strings.Contains(err.Error(), "it has more than") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(alignYAML), true)
	f.Add([]byte(`{"executors":[{"image":"i","command":["x"]}],"resources":{"ramGb":1.5}}`), false)
	f.Add([]byte("a: &a [*a]\n<<: {b: c}\n"), true)
	f.Fuzz(func(t *testing.T, data []byte, yaml bool) {
		format := document.JSON
		if yaml {
			format = document.YAML
		}
		task, _, err := tes.Parse(data, tes.Options{Format: format, Dir: "/d"})
		if err != nil {
			if !errors.Is(err, berth.ErrInvalid) && !errors.Is(err, berth.ErrUnsupported) {
				t.Fatalf("%v has no kind", err)
			}
			return
		}
		for _, format := range []document.Format{document.JSON, document.YAML} {
			out, err := tes.Marshal(task, format)
			if err != nil {
				t.Fatal(err)
			}
			again, _, err := tes.Parse(out, tes.Options{Format: format, Dir: "/d"})
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !reflect.DeepEqual(task, again) {
				t.Fatalf("%+v\nbecame %+v\n%s", task, again, out)
			}
		}
	})
}

// TestExampleOfTheDocumentation reads the document that docs/task-format.md begins with.
func TestExampleOfTheDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../docs/task-format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("there is no example")
	}
	task, warnings, err := tes.Parse([]byte(example), tes.Options{Name: "task.yaml", Dir: "/d"})
	if err != nil || len(warnings) > 0 || len(task.Steps) != 2 || task.Timeout != 30*time.Minute {
		t.Errorf("%+v, %q, %v", task, warnings, err)
	}
}

func TestParseTellsAllFaults(t *testing.T) {
	const in = `executors:
- image: a b
  comand: [x]
- imag: i
  command: [sleep, 5]
- {image: i, workdir: rel, user: "a b"}
resources: {cpu_cores: two}
timeout: 5
volumes: [/v, /v, rel]
`
	_, _, err := tes.Parse([]byte(in), tes.Options{Name: "t.yaml"})
	want := `t.yaml:2:10: executors[0].image: "a b" has white space in it
t.yaml:3:3: executors[0].comand: there is no such key (did you mean "command"?)
t.yaml:4:3: executors[1].imag: there is no such key (did you mean "image"?)
t.yaml:5:20: executors[1].command[1]: it is a number, and must be a string: write "5", in quotes
t.yaml:6:23: executors[2].workdir: "rel" is not an absolute path
t.yaml:6:34: executors[2].user: "a b" is no user: write USER or USER:GROUP, by name or number
t.yaml:7:24: resources.cpu_cores: it is a string, and must be a number
t.yaml:8:10: timeout: it is a number, and must be a duration with its unit: write "5s"
t.yaml:9:15: volumes[1].path: /v is also the path of volumes[0]
t.yaml:9:19: volumes[2].path: "rel" is not an absolute path`
	if err == nil || err.Error() != want || !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("%v\nwant\n%s", err, want)
	}
}
