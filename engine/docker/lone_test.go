package docker_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/client"
)

// TestLone: a container without a network makes do without the daemon's part of one, and differs in nothing for it.
func TestLone(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	v, err := api.ServerVersion(t.Context(), client.ServerVersionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(own, []byte("its own\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const see = `ls /sys/class/net; cat /etc/hostname; ping -c1 -W1 localhost >/dev/null && echo loopback; awk '/extra|name/ {print $1, $2}' /etc/hosts; grep own /etc/hosts; (echo 10.0.0.1 more >> /etc/hosts) 2>/dev/null && echo writable`
	for _, row := range []struct {
		name string
		net  berth.Network
		step berth.StepSpec
		lone bool
		want string
	}{
		{"none", berth.Network{}, berth.StepSpec{}, true, "lo\nname\nloopback\n127.0.1.1 name\nwritable\n"},
		{"hosts", berth.Network{Hosts: []string{"extra:10.1.2.3", "extra6:[fd00::1]"}}, berth.StepSpec{}, true, "lo\nname\nloopback\n10.1.2.3 extra\nfd00::1 extra6\n127.0.1.1 name\nwritable\n"},
		{"an address that the daemon knows", berth.Network{Hosts: []string{"gate:host-gateway"}}, berth.StepSpec{}, false, "lo\nname\nloopback\n127.0.1.1 name\nwritable\n"},
		{"read-only", berth.Network{}, berth.StepSpec{ReadOnly: true}, true, "lo\nname\nloopback\n127.0.1.1 name\n"},
		{"a file of its own", berth.Network{}, berth.StepSpec{Mounts: []berth.Mount{{Source: own, Target: "/etc/hosts", ReadOnly: true}}}, true, "lo\nname\nits own\n"},
		{"bridge", berth.Network{Mode: berth.NetworkBridge}, berth.StepSpec{}, false, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Hostname: "name", Network: row.net})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close(t.Context()) }()
			spec := row.step
			spec.ID, spec.Image, spec.Command = berth.NewID(), img, []string{"sh", "-c", see + "; true"}
			c, err := s.Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			exit, got := wait(t, c), logs(t, c, false)
			if exit.Code != 0 || row.want != "" && got != row.want {
				t.Errorf("exit %+v, output %q, want %q", exit, got, row.want)
			}
			i, err := api.ContainerInspect(t.Context(), "berth-"+e.Owner()+"-"+s.ID()+"-"+spec.ID, client.ContainerInspectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if want := row.lone && v.APIVersion < "1.44"; i.Container.Config.NetworkDisabled != want {
				t.Errorf("without the daemon's part: %t, want %t", i.Container.Config.NetworkDisabled, want)
			}
		})
	}
}

// What a container writes to the files that berth, or the daemon, binds into it counts for its disk limit: while it runs, and
// when it has ended.
func TestLoneFilesAreLimited(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name, host, file string
		net              berth.Network
	}{
		{"hosts, no network", daemon(t).Host(), "/etc/hosts", berth.Network{}},
		{"hostname, no network", daemon(t).Host(), "/etc/hostname", berth.Network{}},
		{"resolv.conf, no network", daemon(t).Host(), "/etc/resolv.conf", berth.Network{}},
		{"hosts, bridge", daemon(t).Host(), "/etc/hosts", berth.Network{Mode: berth.NetworkBridge}},
		{"hostname, bridge", daemon(t).Host(), "/etc/hostname", berth.Network{Mode: berth.NetworkBridge}},
		{"resolv.conf, bridge", daemon(t).Host(), "/etc/resolv.conf", berth.Network{Mode: berth.NetworkBridge}},
		{"hosts, Podman", podman(t).Host(), "/etc/hosts", berth.Network{}},
		{"hostname, Podman", podman(t).Host(), "/etc/hostname", berth.Network{}},
		{"resolv.conf, Podman", podman(t).Host(), "/etc/resolv.conf", berth.Network{}},
		{"Podman's own", podman(t).Host(), "/run/.containerenv", berth.Network{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			e, img := newEngine(t, docker.Config{Host: row.host})
			for _, then := range []string{"sleep 300", "true"} {
				s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Limits: berth.Limits{Disk: 16 << 20}, Network: row.net})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = s.Close(t.Context()) }()
				c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"sh", "-c", "dd if=/dev/zero of=" + row.file + " bs=1M count=64 2>/dev/null; " + then}})
				if err != nil {
					t.Fatal(err)
				}
				if x := wait(t, c); x.Reason != berth.OutOfDisk {
					t.Errorf("then %s: ended as %+v", then, x)
				}
			}
		})
	}
}
