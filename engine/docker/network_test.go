package docker_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// TestOwnNetworks: on a network of the daemon's own that is asked for by name, containers reach one another, and have their
// addresses there.
func TestOwnNetworks(t *testing.T) {
	t.Parallel()
	for i, row := range []struct {
		name string
		host func(testing.TB) *dockertest.Daemon
	}{{"docker", daemon}, {"podman", podman}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			host := row.host(t).Host()
			e, img := newEngine(t, docker.Config{Host: host})
			api, err := client.New(client.WithHost(host))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = api.Close() }()
			name := "net-" + berth.NewID()
			subnet := netip.MustParsePrefix(fmt.Sprintf("10.214.%d.0/24", (os.Getpid()+125*i)%250))
			_, err = api.NetworkCreate(t.Context(), name, client.NetworkCreateOptions{Driver: "bridge", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: subnet}}}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if _, err := api.NetworkRemove(t.Context(), name, client.NetworkRemoveOptions{}); err != nil {
					t.Error(err)
				}
			}()
			spec := berth.SandboxSpec{Network: berth.Network{Mode: berth.NetworkMode(name)}}
			if err := e.Check(t.Context(), spec, nil); err != nil {
				t.Fatal(err)
			}
			begin := func(script string) (berth.Sandbox, berth.Container) {
				t.Helper()
				spec.ID = berth.NewID()
				s, err := e.Open(t.Context(), spec)
				if err != nil {
					t.Fatal(err)
				}
				return s, step(t, s, img, script)
			}
			server, listener := begin("echo ready; while :; do echo hello | nc -l -p 7070; done")
			defer func() {
				if err := server.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			until(t, "it listens", func() bool { return logs(t, listener, false) == "ready\n" })
			address, err := listener.(berth.Addresser).Address(t.Context())
			if err != nil || !subnet.Contains(netip.MustParseAddr(address)) {
				t.Fatalf("address %q, %v; want one of %v", address, err, subnet)
			}
			asker, asks := begin("for i in 1 2 3 4 5 6 7 8 9; do nc " + address + " 7070 </dev/null && exit; sleep 0.2; done; exit 1")
			if exit, got := wait(t, asks), logs(t, asks, false); !exit.OK() || !strings.HasPrefix(got, "hello\n") {
				t.Errorf("exit %+v, %q", exit, got)
			}
			if err := asker.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
