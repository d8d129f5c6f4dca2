package enginetest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// processes are the checks of what a command is started with.
func processes() []Check {
	return []Check{
		check("arguments", arguments),
		check("entrypoint", entrypoint),
		check("environment", environment),
		check("path lookup", pathLookup),
		check("working directory", workingDirectory),
		check("user", users, Users),
		check("user that is not there", unknownUser, Users),
		check("hostname", hostname, Isolation),
		check("init", initProcess, Inits),
		check("no init", noInit, Isolation),
		check("zombies are reaped", zombies, Inits),
		check("ulimits", ulimits, Limits),
		check("sysctls", sysctls, Limits),
	}
}

func arguments(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	spec := t.script("")
	spec.Command = []string{"/bin/sh", "-c", `for a in "$@"; do printf '<%s>' "$a"; done`, "name", "", "a b", "two\nlines", "--", "$HOME", `'"\`, "ü", strings.Repeat("x", 20000)}
	c, err := s.Start(t.ctx, spec)
	if err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	return o.wrote("<" + strings.Join(spec.Command[4:], "><") + ">")
}

func entrypoint(t *trial) error {
	var errs []error
	for _, row := range []struct {
		entrypoint, command []string
		out                 string
	}{
		{[]string{"/bin/echo", "a"}, []string{"b", "c"}, "a b c\n"},
		{[]string{"/bin/echo", "a"}, nil, "a\n"},
		{[]string{}, []string{"/bin/echo", "b"}, "b\n"},
		{nil, []string{"echo", "b"}, "b\n"},
	} {
		s, err := t.sandbox()
		if err != nil {
			return err
		}
		spec := t.script("")
		spec.Entrypoint, spec.Command = row.entrypoint, row.command
		c, err := s.Start(t.ctx, spec)
		if err != nil {
			return err
		}
		o, err := t.end(c)
		if err == nil {
			err = o.wrote(row.out)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("entrypoint %q, command %q: %w", row.entrypoint, row.command, err))
		}
	}
	return errors.Join(errs...)
}

// environment: what the image and the spec say, in that order, and nothing else but what every container has.
func environment(t *trial) error {
	if err := os.Setenv("BERTH_ENGINETEST_LEAK", "leak"); err != nil {
		return err
	}
	own := []string{"A=1", "EMPTY=", "B=a=b", "SPACE= x ", "LINES=one\ntwo", "Z=2", "C=3", "A=4"}
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	spec := t.script("")
	spec.Command, spec.Env = []string{"cat", "/proc/self/environ"}, own
	c, err := s.Start(t.ctx, spec)
	if err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	got := strings.Split(strings.TrimSuffix(o.Out, "\x00"), "\x00")
	void := slices.Index(got, "NVIDIA_VISIBLE_DEVICES=void") // what a default runtime may read: see "environment asks for no devices"
	if void < 0 {
		return fmt.Errorf("environment %q; want NVIDIA_VISIBLE_DEVICES=void in it", got)
	}
	got = slices.Delete(got, void, void+1)
	got = slices.DeleteFunc(got, func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		inherent := slices.Contains([]string{"PATH", "HOSTNAME", "HOME", "TERM"}, key)
		return inherent || slices.ContainsFunc(t.env.Image.Config.Env, func(i string) bool { return strings.HasPrefix(i, key+"=") && key != "A" })
	})
	want := []string{"A=4", "EMPTY=", "B=a=b", "SPACE= x ", "LINES=one\ntwo", "Z=2", "C=3"}
	if !slices.Equal(got, want) {
		return fmt.Errorf("environment %q; want %q", got, want)
	}
	return nil
}

func pathLookup(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	if _, err := t.in(s, `mkdir /vol/a /vol/b; printf '#!/bin/sh\necho "$0"\n' >/vol/b/tool; chmod 755 /vol/b/tool; echo >/vol/a/tool`); err != nil {
		return err
	}
	spec := t.script("")
	spec.Command, spec.Env = []string{"tool"}, []string{"PATH=/vol/none:/vol/a:/vol/b:/bin"}
	c, err := s.Start(t.ctx, spec)
	if err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	return o.wrote("/vol/b/tool\n")
}

func workingDirectory(t *trial) error {
	in := func(dir string) setup { return step(func(s *berth.StepSpec) { s.WorkingDir = dir }) }
	own := t.env.Image.Config.WorkingDir
	if own == "" {
		own = "/"
	}
	return scripts{
		{"the image's", "pwd", own + "\n", in("")},
		{"a dot", "pwd", own + "\n", in(".")},
		{"/tmp", "pwd", "/tmp\n", in("/tmp")},
		{"one that is not there", "pwd; ls -A", "/made/for/it\n", in("/made/for/it")},
	}.check(t)
}

func users(t *trial) error {
	as := func(user string, groups ...string) setup {
		return step(func(s *berth.StepSpec) { s.User, s.Groups = user, groups })
	}
	const ids = `echo "$(id -u):$(id -g) $(id -G | tr ' ' '\n' | sort -n | tr '\n' ' ')$HOME"`
	return scripts{
		{"none", ids, "0:0 0 /root\n", as("")},
		{"a name", ids, "1000:1001 1001 1002 /home/user\n", as("user")},
		{"a number that has a name", ids, "1000:1001 1001 1002 /home/user\n", as("1000")},
		{"a number without a name", ids, "4321:0 0 /\n", as("4321")},
		{"a user and a group", ids, "1000:44 44 /home/user\n", as("user:video")},
		{"numbers", ids, "1000:7 7 /home/user\n", as("1000:7")},
		{"more groups", ids, "1000:7 7 44 99 /home/user\n", as("1000:7", "video", "99")},
		{"may write to its streams", "echo out; echo x >/dev/null && id -u", "out\n1000\n", as("1000:1000")},
	}.check(t)
}

func unknownUser(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	var errs []error
	for _, user := range []string{"no-such-user", "root:no-such-group", "-1", "1:2:3"} {
		spec := t.script("true")
		spec.User = user
		c, err := s.Start(t.ctx, spec)
		if err == nil {
			errs = append(errs, fmt.Errorf("user %q was accepted as container %s", user, c.ID()))
			continue
		}
		if !errors.Is(err, berth.ErrInvalid) && !errors.Is(err, berth.ErrNotFound) {
			errs = append(errs, fmt.Errorf("user %q: error %w is neither ErrInvalid nor ErrNotFound", user, err))
		}
		_, err = s.Container(t.ctx, spec.ID)
		errs = append(errs, kind("the container of a refused start", err, berth.ErrNotFound))
	}
	return errors.Join(errs...)
}

func hostname(t *trial) error {
	o, err := t.sh("hostname; grep -c '[[:space:]]own-name$' /etc/hosts", sandbox(func(s *berth.SandboxSpec) { s.Hostname = "own-name" }))
	if err != nil {
		return err
	}
	if err := o.wrote("own-name\n1\n"); err != nil {
		return err
	}
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	if o, err = t.in(s, "hostname"); err != nil {
		return err
	}
	return o.wrote(s.ID() + "\n")
}

func initProcess(t *trial) error {
	o, err := t.sh(`[ $$ -ne 1 ] && echo child; echo "$PPID"; (readlink /proc/1/exe || cat /proc/1/environ) >/dev/null 2>&1 || echo hidden`)
	if err != nil {
		return err
	}
	return o.wrote("child\n1\nhidden\n")
}

func noInit(t *trial) error {
	o, err := t.sh("echo $$; exit 9", step(func(s *berth.StepSpec) { s.NoInit = true }))
	if err != nil {
		return err
	}
	return errors.Join(o.exited(9), same("its pid", o.Out, "1\n"))
}

// zombies: awk waits for its own child and no other, so that only an init can reap what was left behind.
func zombies(t *trial) error {
	o, err := t.sh(`for i in 1 2 3 4 5 6 7 8 9 10; do sh -c '(sleep 0.05) & exit 0'; done
		exec awk 'BEGIN { system("i=0; while sleep 0.1; n=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -cE \") [ZX] |\\(sleep\\)\"); [ $n != 0 ] && [ $i -lt 40 ]; do i=$((i+1)); done; echo $n") }'`)
	if err != nil {
		return err
	}
	return o.wrote("0\n")
}

func ulimits(t *trial) error {
	o, err := t.sh("ulimit -n; ulimit -H -n; ulimit -c", step(func(s *berth.StepSpec) {
		s.Ulimits = []berth.Ulimit{{Name: "nofile", Soft: 200, Hard: 300}, {Name: "core", Soft: 0, Hard: 0}}
	}))
	if err != nil {
		return err
	}
	return o.wrote("200\n300\n0\n")
}

func sysctls(t *trial) error {
	o, err := t.sh("cat /proc/sys/kernel/msgmax", step(func(s *berth.StepSpec) { s.Sysctls = map[string]string{"kernel.msgmax": "4321"} }))
	if err != nil {
		return err
	}
	if err := o.wrote("4321\n"); err != nil {
		return err
	}
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	// One that is the whole host's is not a container's to set.
	_, err = s.Start(t.ctx, t.script("true", step(func(s *berth.StepSpec) { s.Sysctls = map[string]string{"vm.swappiness": "1"} })))
	if err == nil {
		return errors.New("a sysctl of the host was accepted")
	}
	return nil
}
