package network

import (
	"bytes"
	"net/netip"
	"testing"
)

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\nsearch a b\nnameserver ::1\nnameserver 192.0.2.1"))
	f.Fuzz(func(t *testing.T, conf []byte) {
		usable, removed := withoutLoopback(conf)
		for _, s := range nameservers(usable) {
			if a, err := netip.ParseAddr(s); err == nil && a.Unmap().IsLoopback() {
				t.Errorf("%s is left", s)
			}
		}
		if got, want := len(nameservers(usable))+removed, len(nameservers(conf)); got != want {
			t.Errorf("%d nameservers of %d", got, want)
		}
	})
}

func FuzzHosts(f *testing.F) {
	f.Add("db:192.0.2.1")
	f.Add("a:[::1]")
	f.Add("a b:1.2.3.4\n")
	f.Fuzz(func(t *testing.T, entry string) {
		b, err := parseHosts([]string{entry}, netip.Addr{})
		if err == nil && (bytes.Count(b, []byte("\n")) != 1 || len(bytes.Fields(b)) != 2) {
			t.Errorf("%q gives %q", entry, b)
		}
	})
}

func FuzzLinkName(f *testing.F) {
	f.Add("berth0ac90003")
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := addrOf(name)
		if ok && linkName(a) != name {
			t.Errorf("%q is %s, whose name is %s", name, a, linkName(a))
		}
	})
}
