package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth"
)

// Options say how the host is used. The zero value is usable.
type Options struct {
	// Pool is how many empty namespaces are made in advance: 0 is 4, negative none; then none comes back, either.
	Pool int
	// Subnet is where sandboxes of mode bridge get their addresses: at least a /29 of IPv4. The zero value
	// chooses one that nothing on the host has a route to.
	Subnet netip.Prefix
	// Dir is where what all berths of this host share is locked and remembered until the next boot; "" is
	// /run/berth/network.
	Dir string
	// Log says what is changed on the host: forwarding, rules. nil is silent.
	Log *slog.Logger
	// Etc is where the host's resolv.conf, hosts and hostname are; "" is /etc.
	Etc string
	// Run is where the host's daemons keep their state; "" is /run.
	Run string

	userProgram string   // "" is the first of slirp4netns and pasta that is there
	iptables    iptables // "" is looked for
	withoutNFT  bool     // a test does as if the kernel had only iptables
}

// Host makes the networks of sandboxes on this host. It may be used concurrently.
type Host struct {
	opts Options
	pool *pool

	bridged atomic.Bool // there was a sandbox of mode bridge
}

// New makes a Host. Close it.
func New(opts Options) *Host {
	if opts.Pool == 0 {
		opts.Pool = 4
	}
	if opts.Dir == "" {
		opts.Dir = "/run/berth/network"
	}
	if opts.Etc == "" {
		opts.Etc = "/etc"
	}
	if opts.Run == "" {
		opts.Run = "/run"
	}
	if opts.iptables == "" {
		opts.iptables = findIptables()
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Host{opts: opts, pool: newPool(max(opts.Pool, 0))}
}

// Close frees the namespaces that were made in advance or came back and, if no sandbox of any berth is left, what those
// of mode bridge shared. Networks stay as they are.
func (h *Host) Close() error {
	h.pool.close()
	if !h.bridged.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	unlock, err := h.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = h.tidy(ctx)
	return err
}

// Spec describes the network of a sandbox.
type Spec struct {
	Instance string // whose it is: see Recover
	ID       string // of the sandbox
	Hostname string // "" is ID
	berth.Network
}

// Net is the network of one sandbox.
type Net struct {
	Mode berth.NetworkMode
	// NS is the namespace to join; nil is the host's own. Close and Return take it away.
	NS *os.File
	// Address is the sandbox's address as the host reaches it; the zero value where it has none.
	Address netip.Addr
	// ResolvConf, Hosts and Hostname are what belongs in the files of these names in /etc.
	ResolvConf, Hosts, Hostname []byte

	close func() error
	pool  *pool // where Return puts NS; nil: nowhere
}

// Setup makes a network. ErrUnsupported: this host cannot, the error names the remedy; ErrInvalid: an entry
// of Hosts, or a mode that is not known; ErrExhausted: every address is in use. Nothing is left after an
// error.
func (h *Host) Setup(ctx context.Context, spec Spec) (*Net, error) {
	if spec.Hostname == "" {
		spec.Hostname = spec.ID
	}
	if len(spec.Ports) > 0 {
		return nil, fmt.Errorf("network of %s: published ports: %w: this engine publishes none; the container's own address can be reached from this host", spec.ID, berth.ErrUnsupported)
	}
	n := &Net{Mode: spec.Mode, close: func() error { return nil }}
	var gateway netip.Addr
	switch spec.Mode {
	case berth.NetworkNone, "":
		ns, err := h.pool.get()
		if err != nil {
			return nil, fmt.Errorf("network of %s: %w", spec.ID, err)
		}
		n.Mode, n.NS, n.pool = berth.NetworkNone, ns, h.pool
	case berth.NetworkHost:
	case berth.NetworkBridge:
		var err error
		if gateway, err = h.outwards(ctx, n, spec); err != nil {
			return nil, fmt.Errorf("network of %s: mode bridge: %w", spec.ID, err)
		}
	default:
		return nil, fmt.Errorf("network of %s: mode %q: %w: the modes are none, bridge and host", spec.ID, spec.Mode, berth.ErrInvalid)
	}
	if err := h.files(n, spec, gateway); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("network of %s: %w", spec.ID, err)
	}
	return n, nil
}

// outwards gives the network a namespace with a way out.
func (h *Host) outwards(ctx context.Context, n *Net, spec Spec) (gateway netip.Addr, err error) {
	if n.NS, err = h.pool.get(); err != nil {
		return netip.Addr{}, err
	}
	if canRoute() {
		var out outward
		out, err = h.bridge(ctx, n, spec)
		gateway = out.gateway
	} else {
		err = h.userNetwork(ctx, n)
	}
	if err != nil {
		return netip.Addr{}, errors.Join(err, n.NS.Close())
	}
	return gateway, nil
}

// Lacks says which networks this host cannot give, each with its remedy.
func (h *Host) Lacks() []berth.Lack {
	lacks := h.lackUser()
	if _, err := h.resolvConf(); canRoute() && err != nil {
		lacks = append(lacks, berth.Lack{What: "name resolution in network mode bridge", Why: err.Error(), Remedy: "name a resolver in /etc/resolv.conf that does not listen on loopback only"})
	}
	return lacks
}

// Return is Close where all processes that were in the network have ended, none could configure it, and none could hand
// anything that it had open to a process outside: the namespace of mode none may be another sandbox's later, once it
// is proved to be as a new one. It does not wait for that.
func (n *Net) Return() error {
	if n.pool == nil {
		return n.Close()
	}
	return n.pool.put(n.NS)
}

// Close removes the network. What is still in its namespace stays there, without any way out.
func (n *Net) Close() error {
	err := n.close()
	if n.NS != nil {
		if err2 := n.NS.Close(); err == nil {
			err = err2
		}
	}
	return err
}
