package network

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

func newHost(t *testing.T, opts Options) *Host {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	h := New(opts)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// in runs f in a network namespace.
func in(t *testing.T, ns *os.File, f func() error) {
	t.Helper()
	err := inThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		t.Error(err)
	}
}

// TestInThread takes all threads there are, so that the main one would be among them.
func TestInThread(t *testing.T) {
	const many = 50
	var all, running sync.WaitGroup
	running.Add(many)
	for range many {
		all.Go(func() {
			err := inThread(func() error {
				running.Done()
				running.Wait()
				if unix.Gettid() == os.Getpid() {
					t.Error("it is the main thread")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestNone(t *testing.T) {
	h := newHost(t, Options{Pool: 2})
	seen := map[uint64]bool{}
	for i := range 6 {
		n, err := h.Setup(t.Context(), Spec{Instance: "i", ID: "s" + strconv.Itoa(i)})
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(n.NS.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if seen[st.Ino] {
			t.Errorf("namespace %d was given away twice", st.Ino)
		}
		seen[st.Ino] = true
		in(t, n.NS, func() error {
			// The kernel may make fallback tunnels in each namespace; they are down.
			ifs, err := net.Interfaces()
			if err != nil {
				return err
			}
			for _, i := range ifs {
				if up := i.Flags&net.FlagUp != 0; up != (i.Name == "lo") {
					t.Errorf("interface %s: up is %v", i.Name, up)
				}
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer l.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			return c.Close()
		})
		defer n.Close()
	}
}

func TestNoneAtOnce(t *testing.T) {
	h := newHost(t, Options{Pool: 3})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			n, err := h.Setup(t.Context(), Spec{ID: "s" + strconv.Itoa(i)})
			if err != nil {
				t.Error(err)
				return
			}
			_ = n.Close()
		})
	}
	wg.Wait()
}

func TestCloseFreesThePool(t *testing.T) {
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := open()
	h := New(Options{Pool: 8, Dir: t.TempDir()})
	n, err := h.Setup(t.Context(), Spec{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	_ = n.Close()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestSetupRefuses(t *testing.T) {
	h := newHost(t, Options{})
	for _, c := range []struct {
		name string
		net  berth.Network
		want error
	}{
		{"mode", berth.Network{Mode: "overlay"}, berth.ErrInvalid},
		{"port", berth.Network{Ports: []berth.Port{{Container: 80}}}, berth.ErrUnsupported},
		{"no address", berth.Network{Hosts: []string{"a"}}, berth.ErrInvalid},
		{"bad address", berth.Network{Hosts: []string{"a:1.2.3"}}, berth.ErrInvalid},
		{"line break", berth.Network{Hosts: []string{"a\nb:1.2.3.4"}}, berth.ErrInvalid},
		{"gateway of none", berth.Network{Hosts: []string{"a:host-gateway"}}, berth.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n, err := h.Setup(t.Context(), Spec{ID: "s", Network: c.net}); !errors.Is(err, c.want) {
				t.Errorf("%v %v, want %v", n, err, c.want)
			}
		})
	}
}

func TestFiles(t *testing.T) {
	etc := t.TempDir()
	for name, content := range map[string]string{
		"hosts":       "127.0.0.1 localhost\n192.0.2.9 db # the box",
		"resolv.conf": "search example.org\nnameserver 192.0.2.53\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t, Options{Etc: etc, Pool: -1})
	const standard = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	for _, c := range []struct {
		name                    string
		spec                    Spec
		resolv, hosts, hostname string
	}{
		{
			"none",
			Spec{ID: "task"},
			"# This sandbox has no network.\n", standard + "127.0.1.1\ttask\n", "task\n",
		},
		{
			"none, entries",
			Spec{ID: "task", Hostname: "box", Network: berth.Network{Hosts: []string{"a.example:192.0.2.1", "b:2001:db8::1", "c:[::1]"}}},
			"# This sandbox has no network.\n", standard + "127.0.1.1\tbox\n192.0.2.1\ta.example\n2001:db8::1\tb\n::1\tc\n", "box\n",
		},
		{
			"host",
			Spec{ID: "task", Network: berth.Network{Mode: berth.NetworkHost, Hosts: []string{"a:192.0.2.1"}}},
			"search example.org\nnameserver 192.0.2.53\n", "127.0.0.1 localhost\n192.0.2.9 db # the box\n127.0.1.1\ttask\n192.0.2.1\ta\n", "task\n",
		},
		{
			"host, known name",
			Spec{ID: "task", Hostname: "db", Network: berth.Network{Mode: berth.NetworkHost}},
			"search example.org\nnameserver 192.0.2.53\n", "127.0.0.1 localhost\n192.0.2.9 db # the box\n", "db\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := h.Setup(t.Context(), c.spec)
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			got := []string{string(n.ResolvConf), string(n.Hosts), string(n.Hostname)}
			for i, want := range []string{c.resolv, c.hosts, c.hostname} {
				if got[i] != want {
					t.Errorf("got\n%s\nwant\n%s", got[i], want)
				}
			}
		})
	}
}

func TestResolver(t *testing.T) {
	for _, c := range []struct {
		name, etc, resolved string
		want                string // "" is an error
	}{
		{"plain", "# x\nnameserver 192.0.2.53\noptions edns0\n", "", "# x\nnameserver 192.0.2.53\noptions edns0\n"},
		{"none named", "search example.org\n", "", "search example.org\n"},
		{"stub of systemd", "nameserver 127.0.0.53\noptions edns0 trust-ad\n", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"},
		{"one of two", "nameserver 127.0.0.1\nnameserver 192.0.2.53\n", "", "nameserver 192.0.2.53\n"},
		{"loopback alone", "nameserver 127.0.0.1\nnameserver ::1\n", "", ""},
		{"loopback behind the stub", "nameserver 127.0.0.53\n", "nameserver 127.0.0.1\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			etc, run := t.TempDir(), t.TempDir()
			if err := os.WriteFile(filepath.Join(etc, "resolv.conf"), []byte(c.etc), 0o644); err != nil {
				t.Fatal(err)
			}
			if c.resolved != "" {
				if err := os.MkdirAll(filepath.Join(run, "systemd/resolve"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(run, "systemd/resolve/resolv.conf"), []byte(c.resolved), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := newHost(t, Options{Etc: etc, Run: run, Pool: -1}).resolvConf()
			if c.want == "" {
				if !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "127.0.0.") {
					t.Errorf("%q %v", got, err)
				}
				return
			}
			if err != nil || string(got) != c.want {
				t.Errorf("%q %v, want %q", got, err, c.want)
			}
		})
	}
}
