package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// A sandbox of mode bridge has one end of a veth pair as its eth0. The other end stays on the host, which
// routes: there is no bridge device on which sandboxes would hear each other, and nothing stays when the
// sandbox's namespace is gone. The host's end is named by the sandbox's address, so that the kernel itself,
// which has no two links of one name, is the allocation that all berths of this host share.

const (
	linkPrefix = "berth" // and the address in hexadecimal
	inside     = "eth0"
)

// outward is what the host has of one sandbox's way out.
type outward struct {
	addr    netip.Addr
	gateway netip.Addr
	link    int // index
}

// bridge connects a namespace.
func (h *Host) bridge(ctx context.Context, n *Net, spec Spec) (outward, error) {
	o, err := h.plug(ctx, n, spec)
	if err != nil {
		return outward{}, err
	}
	n.close = func() error { return unplug(o.link) }
	if err := configure(ctx, n.NS, o); err != nil {
		return outward{}, errors.Join(err, unplug(o.link))
	}
	n.Address = o.addr
	return o, nil
}

// plug makes the pair under a free address, and what all sandboxes need of the host.
func (h *Host) plug(ctx context.Context, n *Net, spec Spec) (outward, error) {
	unlock, err := h.lock(ctx)
	if err != nil {
		return outward{}, err
	}
	defer unlock()
	taken, err := plugged()
	if err != nil {
		return outward{}, err
	}
	subnet, err := h.subnet(taken)
	if err != nil {
		return outward{}, err
	}
	o := outward{gateway: subnet.Addr().Next()}
	for addr := range candidates(subnet, rand.Uint64()) { //nolint:gosec // spreads, hides nothing
		if _, ok := taken[addr]; ok {
			continue
		}
		o.addr = addr
		if o.link, err = pair(n.NS, addr, spec); !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return outward{}, fmt.Errorf("%w: this process may not make network links: it lacks CAP_NET_ADMIN; use network mode host or none", berth.ErrDenied)
	case errors.Is(err, unix.EOPNOTSUPP):
		return outward{}, fmt.Errorf("%w: the kernel has no veth links: modprobe veth", berth.ErrUnsupported)
	case err != nil:
		return outward{}, fmt.Errorf("make a veth link: %w", err)
	case o.link == 0:
		return outward{}, fmt.Errorf("%w: every address of %s is in use", berth.ErrExhausted, subnet)
	}
	h.bridged.Store(true)
	if err := errors.Join(h.rules(ctx, subnet), h.forward()); err != nil {
		return outward{}, errors.Join(err, unplug(o.link))
	}
	return o, nil
}

// pair makes the veth pair of an address: EEXIST if that is another's.
func pair(ns *os.File, addr netip.Addr, spec Spec) (index int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = linkName(addr)
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: inside, PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := netlink.LinkAdd(v); err != nil {
		return 0, err
	}
	l, err := netlink.LinkByName(attrs.Name)
	if err != nil {
		return 0, err
	}
	if err := netlink.LinkSetAlias(l, alias(spec.Instance)+spec.ID); err != nil {
		return 0, errors.Join(err, netlink.LinkDel(l))
	}
	return l.Attrs().Index, nil
}

// alias of a link begins with this; it says whose the link is.
func alias(instance string) string { return "berth " + instance + " " }

// configure gives both ends their addresses and routes, and waits until packets pass: those that are sent
// earlier are lost, and it takes a second until a program sends them again.
func configure(ctx context.Context, ns *os.File, o outward) error {
	mtu := uplinkMTU()
	k, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer k.Close()
	if err := configureInside(k, ns, o, mtu); err != nil {
		return fmt.Errorf("configure the sandbox's end of a link: %w", err)
	}
	if err := configureHost(o, mtu); err != nil {
		return fmt.Errorf("configure the host's end of a link: %w", err)
	}
	for {
		l, err := k.LinkByName(inside)
		if err != nil || l.Attrs().OperState == netlink.OperUp {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(500 * time.Microsecond):
		}
	}
}

// configureHost brings the host's end up and routes the address to it.
func configureHost(o outward, mtu int) error {
	name := linkName(o.addr)
	l, err := netlink.LinkByIndex(o.link)
	if err != nil {
		return err
	}
	// With rp_filter a sandbox cannot send from another's address.
	for file, value := range map[string]string{
		"ipv4/conf/" + name + "/rp_filter":    "1",
		"ipv4/conf/" + name + "/forwarding":   "1",
		"ipv6/conf/" + name + "/disable_ipv6": "1",
	} {
		if err := sysctl(file, value); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetMTU(l, mtu); err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: host(o.gateway)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{
		LinkIndex: o.link, Scope: netlink.SCOPE_LINK, Dst: host(o.addr), Src: o.gateway.AsSlice(),
	})
}

// configureInside gives eth0 its address and routes everything to the host. The sandbox has no IPv6.
func configureInside(k *netlink.Handle, ns *os.File, o outward, mtu int) error {
	err := inThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return sysctl("ipv6/conf/"+inside+"/disable_ipv6", "1")
	})
	if err != nil {
		return err
	}
	l, err := k.LinkByName(inside)
	if err != nil {
		return err
	}
	if err := k.LinkSetMTU(l, mtu); err != nil {
		return err
	}
	if err := k.AddrAdd(l, &netlink.Addr{IPNet: host(o.addr)}); err != nil {
		return err
	}
	if err := k.LinkSetUp(l); err != nil {
		return err
	}
	index := l.Attrs().Index
	if err := k.RouteAdd(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: host(o.gateway)}); err != nil {
		return err
	}
	return k.RouteAdd(&netlink.Route{LinkIndex: index, Gw: o.gateway.AsSlice()})
}

// unplug removes a pair. No error if it is gone.
func unplug(index int) error {
	l, err := netlink.LinkByIndex(index)
	if gone(err) {
		return nil
	}
	if err == nil {
		if _, ours := addrOf(l.Attrs().Name); !ours {
			return nil // the index is another's by now
		}
		err = netlink.LinkDel(l)
	}
	if gone(err) {
		return nil
	}
	return err
}

func gone(err error) bool {
	return errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV)
}

// plugged are the sandboxes' links on this host by their address; the value is the alias.
func plugged() (map[netip.Addr]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	found := map[netip.Addr]string{}
	for _, l := range links {
		if a, ok := addrOf(l.Attrs().Name); ok {
			found[a] = l.Attrs().Alias
		}
	}
	return found, nil
}

func linkName(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("%s%02x%02x%02x%02x", linkPrefix, b[0], b[1], b[2], b[3])
}

// addrOf is the reverse of linkName.
func addrOf(link string) (netip.Addr, bool) {
	digits, ok := strings.CutPrefix(link, linkPrefix)
	if !ok || len(digits) != 8 {
		return netip.Addr{}, false
	}
	n, err := strconv.ParseUint(digits, 16, 32)
	if err != nil {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	return a, linkName(a) == link
}

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// sysctl writes a setting below /proc/sys/net of the thread's namespace. What the kernel does not have needs
// no setting.
func sysctl(name, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
