package ociruntime

import (
	"slices"
	"strings"
	"testing"
)

func TestParseCommand(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		want command
		args string // where they are not those of line
	}{
		"as Docker's shim writes it": {
			line: "--root /run/docker/runtime-runc/moby --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid abc",
			want: command{root: "/run/docker/runtime-runc/moby", log: "/b/log.json", json: true, name: "create", bundle: "/b", id: "abc"},
		},
		"as Podman's conmon writes it": {
			line: "--log-format=json --log=/b/oci-log --root=/run/crun create --bundle /b --pid-file /p --no-pivot abc",
			want: command{root: "/run/crun", log: "/b/oci-log", json: true, name: "create", bundle: "/b", id: "abc"},
		},
		"berth's flag is not handed on": {
			line: "--berth-config /etc/x.toml --systemd-cgroup delete --force abc",
			want: command{config: "/etc/x.toml", name: "delete", bundle: "/here", id: "abc"},
			args: "--systemd-cgroup delete --force abc",
		},
		"berth's flag in one word": {
			line: "--berth-config=/etc/x.toml state abc", args: "state abc",
			want: command{config: "/etc/x.toml", name: "state", bundle: "/here", id: "abc"},
		},
		"an unknown flag with a value, and a relative bundle": {
			line: "--platform ptrace run -b=sub/dir abc",
			want: command{name: "run", bundle: "/here/sub/dir", id: "abc"},
		},
		"an unknown flag without a value": {
			line: "--debug create abc",
			want: command{name: "create", bundle: "/here", id: "abc"},
		},
		"no bundle, another name of its configuration": {
			line: "run --console-socket /s --config other.json abc",
			want: command{name: "run", bundle: "/here", spec: "other.json", id: "abc"},
		},
		"an ID that is named like a command, of a flag's value like an ID": {
			line: "create --bundle create -- -x",
			want: command{name: "create", bundle: "/here/create", id: "-x"},
		},
		"the command's own arguments are not the container's": {
			line: "exec --process /p abc --bundle /elsewhere",
			want: command{name: "exec", bundle: "/elsewhere", id: "/p"},
		},
		"the state directory, however it is written": {
			line: "--root state/../run/ delete abc",
			want: command{root: "/here/run", name: "delete", bundle: "/here", id: "abc"},
		},
		"forced delete": {
			line: "delete -f abc",
			want: command{name: "delete", bundle: "/here", id: "abc"},
		},
		"crun's configuration": {
			line: "create -f other.json abc",
			want: command{name: "create", bundle: "/here", spec: "other.json", id: "abc"},
		},
		"no command": {line: "--version", want: command{bundle: "/here"}},
		"nothing":    {want: command{bundle: "/here"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(c.line)
			got := parseCommand(args, "/here")
			want := c.want
			want.args = args
			if c.args != "" {
				want.args = strings.Fields(c.args)
			}
			if want.spec == "" {
				want.spec = "config.json"
			}
			if !slices.Equal(got.args, want.args) {
				t.Errorf("the runtime gets %q, want %q", got.args, want.args)
			}
			got.args, want.args = nil, nil
			if gotText, wantText := show(got), show(&want); gotText != wantText {
				t.Errorf("got %s, want %s", gotText, wantText)
			}
		})
	}
}

func show(c *command) string {
	json := ""
	if c.json {
		json = "json"
	}
	return strings.Join([]string{c.config, c.root, c.log, json, c.name, c.bundle, c.spec, c.id}, "|")
}

func FuzzParseCommand(f *testing.F) {
	f.Add("--root /r create --bundle /b abc")
	f.Add("--berth-config")
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		// Every argument but berth's own reaches the runtime, in order.
		rest := parseCommand(args, "/here").args
		if !strings.Contains(line, "--berth-") && !slices.Equal(rest, args) {
			t.Errorf("%q became %q", args, rest)
		}
	})
}
