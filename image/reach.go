package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/berth-project/berth"
)

// zone is how near to this machine an address is: what listens at nearer ones trusts who can reach it.
type zone int32

const (
	zonePublic  zone = iota
	zonePrivate      // of this site: RFC 1918 and its like
	zoneHere         // this machine
	zoneNever        // of the link, where clouds hand out credentials, and what is no address of one host
)

func (z zone) String() string {
	return [...]string{"public", "private", "of this machine", "link-local or reserved"}[z]
}

var (
	shared  = netip.MustParsePrefix("100.64.0.0/10") // of a provider's own network
	nat64   = netip.MustParsePrefix("64:ff9b::/96")  // an IPv4 address within
	awsMeta = netip.MustParseAddr("fd00:ec2::254")   // as 169.254.169.254
	aliMeta = netip.MustParseAddr("100.100.100.200") // the same of another cloud
	zeroNet = netip.MustParsePrefix("0.0.0.0/8")     // Linux takes 0.0.0.0 for this machine
	lastNet = netip.MustParsePrefix("240.0.0.0/4")   // broadcast is in it
)

func zoneOf(a netip.Addr) zone {
	a = a.Unmap().WithZone("")
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case a.IsLoopback(), a.IsUnspecified(), zeroNet.Contains(a):
		return zoneHere
	case !a.IsValid(), a.IsLinkLocalUnicast(), a.IsMulticast(), lastNet.Contains(a), a == awsMeta, a == aliMeta:
		return zoneNever
	case a.IsPrivate(), shared.Contains(a):
		return zonePrivate
	}
	return zonePublic
}

// zoneOfName is the zone of a host that is named by its address, or as this machine. Others are seen when
// they are dialed.
func zoneOfName(host string) (zone, bool) {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return zoneHere, true
	}
	a, err := netip.ParseAddr(host)
	return zoneOf(a), err == nil
}

func zoneOfConn(c net.Conn) zone {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return zoneOf(a.AddrPort().Addr())
	}
	return zoneNever
}

// place is where a registry is: the host that the user named, and its zone as its connections show it. One behind a proxy
// shows none, and counts as public unless it is named by its address.
type place struct {
	registry string // as the user named it
	host     string // "host:port"
	zone     atomic.Int32
}

func newPlace(registry string, base *url.URL) *place {
	p := &place{registry: registry, host: hostPort(base)}
	if z, ok := zoneOfName(base.Hostname()); ok {
		p.zone.Store(int32(z))
	}
	return p
}

// hostPort is the address of a URL. The registry's scheme is not known from the start, so that http's port,
// where none is named, is https's.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// most is the nearest zone that the registry may send to: its own. A registry at an address of the link, which
// its user named, may send to none of them but itself.
func (p *place) most() zone { return min(zone(p.zone.Load()), zoneHere) }

// watch has the zone follow from the connection that a request to the registry itself takes.
func (p *place) watch(req *http.Request) *http.Request {
	return req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if z := zoneOfConn(info.Conn); z != zoneNever {
				p.zone.Store(int32(z))
			}
		},
	}))
}

func (p *place) refuse(u *url.URL, z zone) error {
	return fmt.Errorf("%w: registry %s sends to %s://%s, an address that is %s: a registry may send to public addresses, one at a private address to private ones too, one on this machine to this machine too",
		berth.ErrDenied, p.registry, u.Scheme, u.Host, z)
}

// nearError says that a dialed address is nearer than it may be.
type nearError struct{ zone zone }

func (e *nearError) Error() string { return "the address is " + e.zone.String() }

// away are the transports for what a registry sends to: a pool of connections for each zone that may be reached,
// so that none is used that was dialed for one that may reach more.
type away [zoneNever]http.RoundTripper

// newAway makes the transports like inner. One that is no *http.Transport is used as it is.
func newAway(inner http.RoundTripper) *away {
	var a away
	for z := range a {
		a[z] = inner
		if t, ok := inner.(*http.Transport); ok {
			a[z] = within(t, zone(z))
		}
	}
	return &a
}

func (a *away) close() {
	for _, t := range a {
		if t, ok := t.(*http.Transport); ok {
			t.CloseIdleConnections()
		}
	}
}

// within is a transport that speaks to no address nearer than most. It looks at the address that was reached
// and not at a name's, which may be another a moment later. A proxy may be anywhere, and sees to what it reaches.
func within(t *http.Transport, most zone) *http.Transport {
	t = t.Clone()
	var proxies sync.Map
	if proxy := t.Proxy; proxy != nil {
		t.Proxy = func(req *http.Request) (*url.URL, error) {
			u, err := proxy(req)
			if u != nil {
				proxies.Store(proxyAddress(u), true)
			}
			return u, err
		}
	}
	dial := t.DialContext
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if _, ok := proxies.Load(addr); ok {
			return c, nil
		}
		if z := zoneOfConn(c); z > most {
			_ = c.Close()
			return nil, &nearError{z}
		}
		return c, nil
	}
	return t
}

// proxyAddress is what is dialed for a proxy.
func proxyAddress(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// proxied reports whether a request goes through a proxy, so that its connection shows where the proxy is, and not the
// registry.
func proxied(rt http.RoundTripper, req *http.Request) bool {
	t, ok := rt.(*http.Transport)
	if !ok || t.Proxy == nil {
		return false
	}
	u, err := t.Proxy(req)
	return u != nil || err != nil
}

// send sends a request of the registry's own, or to where the registry sends.
func (g guard) send(req *http.Request) (*http.Response, error) {
	if hostPort(req.URL) == g.place.host {
		if !proxied(g.inner, req) {
			req = g.place.watch(req)
		}
		return g.inner.RoundTrip(req)
	}
	most := g.place.most()
	if z, ok := zoneOfName(req.URL.Hostname()); ok && z > most {
		return nil, g.place.refuse(req.URL, z)
	}
	resp, err := g.away[most].RoundTrip(req)
	if near, ok := errors.AsType[*nearError](err); ok {
		return nil, g.place.refuse(req.URL, near.zone)
	}
	return resp, err
}
