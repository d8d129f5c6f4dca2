package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/berth-project/berth"
)

// files fills in the contents of the network's files in /etc.
func (h *Host) files(n *Net, spec Spec, gateway netip.Addr) error {
	extra, err := parseHosts(spec.Hosts, gateway)
	if err != nil {
		return err
	}
	n.Hostname = []byte(spec.Hostname + "\n")
	switch n.Mode {
	case berth.NetworkHost:
		hosts, err := h.etc("hosts")
		if err != nil {
			return err
		}
		if n.ResolvConf, err = h.etc("resolv.conf"); err != nil {
			return err
		}
		if !names(hosts, spec.Hostname) {
			hosts = fmt.Appendf(endLine(hosts), "127.0.1.1\t%s\n", spec.Hostname)
		}
		n.Hosts = append(endLine(hosts), extra...)
		return nil
	case berth.NetworkNone:
		n.ResolvConf = []byte("# This sandbox has no network.\n")
	default:
		if n.ResolvConf, err = h.bridgeResolver(n); err != nil {
			return err
		}
	}
	own := n.Address
	if n.Mode == berth.NetworkBridge && !own.IsValid() {
		own = userAddress
	}
	if !own.IsValid() {
		own = netip.AddrFrom4([4]byte{127, 0, 1, 1}) // as Debian does: many programs look up their own name
	}
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	fmt.Fprintf(&b, "%s\t%s\n", own, spec.Hostname)
	b.Write(extra)
	n.Hosts = b.Bytes()
	return nil
}

// parseHosts makes lines of /etc/hosts of entries "name:address". The address "host-gateway" is this host's,
// as with Docker.
func parseHosts(entries []string, gateway netip.Addr) ([]byte, error) {
	var b bytes.Buffer
	for _, e := range entries {
		name, addr, ok := strings.Cut(e, ":")
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r == '#' || !unicode.IsPrint(r) || unicode.IsSpace(r) }) {
			return nil, fmt.Errorf("host entry %q: %w: an entry is NAME:ADDRESS", e, berth.ErrInvalid)
		}
		if addr == "host-gateway" {
			if !gateway.IsValid() {
				return nil, fmt.Errorf("host entry %q: %w: only a sandbox of mode bridge, made by root, has an address of the host's own", e, berth.ErrInvalid)
			}
			addr = gateway.String()
		}
		a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]"))
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("host entry %q: %w: %q is no IP address", e, berth.ErrInvalid, addr)
		}
		fmt.Fprintf(&b, "%s\t%s\n", a, name)
	}
	return b.Bytes(), nil
}

// bridgeResolver is the resolv.conf of a sandbox of mode bridge. A process that plays the network also plays
// the resolver.
func (h *Host) bridgeResolver(n *Net) ([]byte, error) {
	if n.Address.IsValid() {
		return h.resolvConf()
	}
	conf, err := h.etc("resolv.conf")
	if err != nil {
		return nil, err
	}
	b := fmt.Appendf(nil, "nameserver %s\n", userResolver)
	for line := range bytes.Lines(conf) {
		if f := bytes.Fields(line); len(f) > 1 && (string(f[0]) == "search" || string(f[0]) == "options") {
			b = append(b, line...)
		}
	}
	return endLine(b), nil
}

// resolvConf is the host's resolver as a sandbox with a namespace of its own can use it. A resolver on the
// host's loopback cannot be reached from there. Where it is systemd-resolved's stub, what that would ask is
// known; else it is an error, as a container in which no name resolves is hard to understand.
func (h *Host) resolvConf() ([]byte, error) {
	conf, err := h.etc("resolv.conf")
	if err != nil {
		return nil, err
	}
	usable, loopback := withoutLoopback(conf)
	if loopback == 0 || len(nameservers(usable)) > 0 {
		return usable, nil
	}
	// The stub writes what it asks itself into a file beside its own.
	upstream, err := os.ReadFile(filepath.Join(h.opts.Run, "systemd/resolve/resolv.conf"))
	if err == nil {
		if usable, _ := withoutLoopback(upstream); len(nameservers(usable)) > 0 {
			return usable, nil
		}
	}
	return nil, fmt.Errorf("resolver: %w: %s names only %s, which a sandbox of mode bridge cannot reach; "+
		"name a resolver there that listens on another address, or use network mode host",
		berth.ErrUnsupported, filepath.Join(h.opts.Etc, "resolv.conf"), strings.Join(nameservers(conf), " and "))
}

// withoutLoopback removes the nameservers on loopback, and says how many those were.
func withoutLoopback(conf []byte) (usable []byte, removed int) {
	for line := range bytes.Lines(conf) {
		if servers := nameservers(line); len(servers) == 1 {
			addr, err := netip.ParseAddr(servers[0])
			if err == nil && (addr.Unmap().IsLoopback() || addr.IsUnspecified()) {
				removed++
				continue
			}
		}
		usable = append(usable, line...)
	}
	return usable, removed
}

// nameservers lists the servers of a resolv.conf (resolv.conf(5)).
func nameservers(conf []byte) []string {
	var servers []string
	for line := range strings.Lines(string(conf)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	return servers
}

// names reports whether a hosts file names a host.
func names(hosts []byte, host string) bool {
	for line := range strings.Lines(string(hosts)) {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 1 && slices.Contains(f[1:], host) {
			return true
		}
	}
	return false
}

// etc reads a file of the host; one that is not there is empty.
func (h *Host) etc(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(h.opts.Etc, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func endLine(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] != '\n' {
		return append(b, '\n')
	}
	return b
}
