package enginetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
)

// networks are the checks of what network a container has.
func networks() []Check {
	return []Check{
		check("no network", noNetwork, Isolation),
		check("no address", noAddress),
		check("host network", hostNetwork, HostNetwork),
		check("bridge network", bridgeNetwork, Bridge),
		check("bridge address is reachable", bridgeAddress, Bridge),
		check("published port", publishedPort, Bridge, Ports),
	}
}

func network(mode berth.NetworkMode) setup {
	return sandbox(func(s *berth.SandboxSpec) { s.Network.Mode = mode })
}

func noNetwork(t *trial) error {
	port, stop, err := greeter(t.ctx, "127.0.0.1")
	if err != nil {
		return err
	}
	defer stop()
	return scripts{
		{"a service of the host", "nc 127.0.0.1 " + port + " 2>/dev/null || echo none", "none\n", nil},
		{"interfaces", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "lo\n", nil},
		{"routes", "ip route", "", nil},
		{"named none", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "lo\n", network(berth.NetworkNone)},
		{"loopback", "(echo hello | nc -l -p 7777 >/tmp/got 2>/dev/null &) ; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1; echo hi | nc 127.0.0.1 7777 && break; done", "hello\n", nil},
		{"the steps of a task share it", "cat /proc/sys/net/ipv4/ip_forward >/dev/null && echo own", "own\n", nil},
	}.check(t)
}

func noAddress(t *trial) error {
	_, c, err := t.start("echo ready; " + loop)
	if err != nil {
		return err
	}
	a, ok := c.(berth.Addresser)
	if !ok {
		return errors.New("the container is no berth.Addresser")
	}
	address, err := a.Address(t.ctx)
	return kind("the address "+address+" of a container without a network", err, berth.ErrNotFound)
}

func hostNetwork(t *trial) error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	port, stop, err := greeter(t.ctx, "127.0.0.1")
	if err != nil {
		return err
	}
	defer stop()
	return scripts{
		{"its namespace", "readlink /proc/self/ns/net", own + "\n", network(berth.NetworkHost)},
		{"a service of the host", "nc 127.0.0.1 " + port, greeting, network(berth.NetworkHost)},
	}.check(t)
}

// greeting is what a greeter says.
const greeting = "from the host\n"

// greeter is a server of this host that says its greeting to all who come.
func greeter(ctx context.Context, host string) (port string, stop func(), err error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting)
			_ = c.Close()
		}
	})
	_, port, err = net.SplitHostPort(listener.Addr().String())
	return port, func() { _ = listener.Close(); wg.Wait() }, err
}

func bridgeNetwork(t *trial) error {
	host, err := hostAddress()
	if err != nil {
		return err
	}
	port, stop, err := greeter(t.ctx, host)
	if err != nil {
		return err
	}
	defer stop()
	o, err := t.sh(`ip route | grep -q '^default via' && echo route; [ "$(ip -o addr | grep -vc ' lo ')" -ge 1 ] && echo address; grep -q ^nameserver /etc/resolv.conf && echo resolver
		nc `+host+" "+port, network(berth.NetworkBridge))
	if err != nil {
		return err
	}
	return o.wrote("route\naddress\nresolver\n" + greeting)
}

// hostAddress is an address of this host that a container reaches as it does others: not loopback's.
func hostAddress() (string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String(), nil
		}
	}
	return "", errors.New("this host has no address but loopback's: declare that it lacks a bridge")
}

// bridgeAddress talks to a server that answers as often as it is asked: one that ended with its first answer
// would take its network with it, and what is on its way there, and could not be asked again.
func bridgeAddress(t *trial) error {
	// What answers must be this container: another check's may listen on the host.
	answer := "HTTP/1.1 418 " + rand.Text()
	_, c, err := t.start(`echo ready; while :; do nc -l -p 7080 -e printf '`+answer+`\r\n\r\n'; done`, network(berth.NetworkBridge))
	if err != nil {
		return err
	}
	a, ok := c.(berth.Addresser)
	if !ok {
		return errors.New("the container is no berth.Addresser")
	}
	if err := t.ready(c); err != nil {
		return err
	}
	address, err := a.Address(t.ctx)
	if err != nil {
		return fmt.Errorf("address: %w", err)
	}
	var got string
	var failed error
	err = t.eventually("the container's port answers", func() (bool, error) {
		got, failed = talk(t.ctx, net.JoinHostPort(address, "7080"))
		return strings.HasPrefix(got, answer), nil
	})
	if err != nil {
		return fmt.Errorf("%w; %s answered %s, error %w", err, address, quoted(got), orNone(failed))
	}
	return nil
}

// publishedPort talks to a container by a port of this host, which the engine chooses and tells.
func publishedPort(t *trial) error {
	for _, mode := range []berth.NetworkMode{berth.NetworkNone, berth.NetworkHost} {
		_, err := t.sandbox(network(mode), ports(berth.Port{Container: 7080}))
		if err := kind("a port published with the network "+string(mode), err, berth.ErrInvalid); err != nil {
			return err
		}
	}
	answer := "HTTP/1.1 418 " + rand.Text()
	_, c, err := t.start(`echo ready; while :; do nc -l -p 7080 -e printf '`+answer+`\r\n\r\n'; done`, network(berth.NetworkBridge),
		ports(berth.Port{HostIP: "127.0.0.1", Container: 7080, Protocol: "tcp"}))
	if err != nil {
		return err
	}
	p, ok := c.(berth.Publisher)
	if !ok {
		return errors.New("the container is no berth.Publisher")
	}
	if err := t.ready(c); err != nil {
		return err
	}
	all, err := p.Published(t.ctx)
	if err != nil {
		return fmt.Errorf("published: %w", err)
	}
	if len(all) != 1 || all[0].Host == 0 || all[0] != (berth.Port{HostIP: "127.0.0.1", Host: all[0].Host, Container: 7080, Protocol: "tcp"}) {
		return fmt.Errorf("published are %+v", all)
	}
	var got string
	var failed error
	err = t.eventually("the published port answers", func() (bool, error) {
		got, failed = talk(t.ctx, net.JoinHostPort(all[0].HostIP, strconv.Itoa(int(all[0].Host))))
		return strings.HasPrefix(got, answer), nil
	})
	if err != nil {
		return fmt.Errorf("%w; %+v answered %s, error %w", err, all[0], quoted(got), orNone(failed))
	}
	return nil
}

func ports(all ...berth.Port) setup {
	return sandbox(func(s *berth.SandboxSpec) { s.Network.Ports = all })
}

// talk asks a server and returns its answer, with the error that ended it.
func talk(ctx context.Context, address string) (string, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	_, asked := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n") // it may have answered and closed already
	b, err := io.ReadAll(c)
	return string(b), errors.Join(asked, err)
}
