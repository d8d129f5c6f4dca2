package network

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// subnet is where addresses come from: what the options say, else what other sandboxes are in, else one that
// nothing on this host has a route to.
func (h *Host) subnet(taken map[netip.Addr]string) (netip.Prefix, error) {
	if p := h.opts.Subnet; p.IsValid() {
		if !p.Addr().Is4() || p.Bits() > 29 {
			return p, fmt.Errorf("subnet %s: %w: it is of IPv4 and holds at least 8 addresses", p, berth.ErrInvalid)
		}
		return p.Masked(), nil
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list routes: %w", err)
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if p := netip.PrefixFrom(addr.Unmap(), bits); ok && bits > 0 {
			used = append(used, p)
		}
	}
	if conf, err := h.etc("resolv.conf"); err == nil {
		for _, s := range nameservers(conf) {
			if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
				used = append(used, netip.PrefixFrom(a, 32))
			}
		}
	}
	return choose(used, taken)
}

// choose takes the first subnet in which nothing lies but sandboxes; one that sandboxes are in is preferred.
func choose(used []netip.Prefix, taken map[netip.Addr]string) (netip.Prefix, error) {
	all := ourSubnets()
	for _, p := range all {
		for a := range taken {
			if p.Contains(a) {
				return p, nil
			}
		}
	}
	for _, p := range all {
		free := true
		for _, u := range used {
			free = free && !u.Overlaps(p)
		}
		if free {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("%w: this host has routes into every subnet that berth would take; name one in its configuration", berth.ErrExhausted)
}

// ourSubnets are those that berth takes by itself: away from the first ones of each range, which others take.
func ourSubnets() []netip.Prefix {
	var all []netip.Prefix
	for b := byte(201); b < 250; b++ {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, b, 0, 0}), 16))
	}
	for b := byte(31); b > 15; b-- {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, b, 0, 0}), 16))
	}
	for b := byte(250); b > 100; b-- {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, b, 0}), 24))
	}
	return all
}

// candidates are the addresses of a subnet that a sandbox may have, each once, from a place that seed
// chooses: an address is not given again soon. The first is the gateway's, the last for broadcasts.
func candidates(subnet netip.Prefix, seed uint64) iter.Seq[netip.Addr] {
	base := subnet.Addr().As4()
	n := uint64(1)<<(32-subnet.Bits()) - 3
	return func(yield func(netip.Addr) bool) {
		for i := range n {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+2+uint32((seed+i)%n))
			if !yield(netip.AddrFrom4(b)) {
				return
			}
		}
	}
}
