package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Tests of mode bridge run in a network namespace that stands for the host, so that nothing of the real one
// is touched; the test binary starts itself again in one. A second namespace is the world beyond it.
const (
	onStage   = "BERTH_TEST_STAGE"
	hostAddr  = "198.51.100.1" // of the link to the world
	worldAddr = "198.51.100.2"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if f := map[string]func([]string) error{"owner": owner, "user": user}[os.Args[1]]; f != nil {
			if err := f(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	if os.Getenv(onStage) == "" && os.Geteuid() == 0 {
		c := exec.Command("/proc/self/exe", os.Args[1:]...)
		c.Env = append(os.Environ(), onStage+"=1")
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := c.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// stage makes the world and the host's link to it, and answers the world's namespace.
func stage(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root can make links and rules")
	}
	world, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "up0", 1400
	up := &netlink.Veth{LinkAttrs: attrs, PeerName: "down0", PeerNamespace: netlink.NsFd(world.Fd())}
	t.Cleanup(func() { _ = netlink.LinkDel(up); _ = world.Close() })
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(inThread(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}))
	check(netlink.LinkAdd(up))
	made, err := netlink.LinkByName("up0")
	check(err)
	up.Index = made.Attrs().Index
	check(netlink.AddrAdd(up, parseAddr(hostAddr+"/24")))
	check(netlink.LinkSetUp(up))
	check(netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(worldAddr)}))
	k, err := netlink.NewHandleAt(netns.NsHandle(world.Fd()), unix.NETLINK_ROUTE)
	check(err)
	defer k.Close()
	down, err := k.LinkByName("down0")
	check(err)
	check(k.LinkSetMTU(down, 1400))
	check(k.AddrAdd(down, parseAddr(worldAddr+"/24")))
	check(k.LinkSetUp(down))
	check(sysctl("ipv4/ip_forward", "0"))
	for {
		l, err := netlink.LinkByIndex(up.Index)
		check(err)
		if l.Attrs().OperState == netlink.OperUp {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return world
}

func parseAddr(s string) *netlink.Addr {
	a, err := netlink.ParseAddr(s)
	if err != nil {
		panic(err)
	}
	return a
}

// serve answers each connection, in a namespace, with "NAME saw ADDRESS".
func serve(t *testing.T, ns *os.File, addr, name string) {
	t.Helper()
	var l net.Listener
	in(t, ns, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp4", addr)
		return err
	})
	if l == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s saw %s\n", name, from)
			_ = c.Close()
		}
	}()
}

// ask connects from a namespace (nil: the host) and answers what was said, or "nothing".
func ask(t *testing.T, ns *os.File, addr, want string) string {
	t.Helper()
	timeout := 5 * time.Second
	if want == "nothing" {
		timeout = 300 * time.Millisecond
	}
	answer := "nothing"
	f := func() error {
		c, err := net.DialTimeout("tcp4", addr, timeout)
		if err != nil {
			return nil
		}
		defer c.Close()
		line, err := bufio.NewReader(c).ReadString('\n')
		answer = strings.TrimSpace(line)
		return err
	}
	if ns == nil {
		if err := f(); err != nil {
			t.Error(err)
		}
		return answer
	}
	in(t, ns, f)
	return answer
}

func bridge(t *testing.T, h *Host, id string) *Net {
	t.Helper()
	n, err := h.Setup(t.Context(), Spec{Instance: "inst", ID: id, Network: berth.Network{Mode: berth.NetworkBridge, Hosts: []string{"gw:host-gateway"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func etc(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+worldAddr+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBridge(t *testing.T) {
	world := stage(t)
	home, err := currentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	h := newHost(t, Options{Etc: etc(t), Pool: -1})
	a, b := bridge(t, h, "a"), bridge(t, h, "b")
	gateway := netip.PrefixFrom(a.Address, 16).Masked().Addr().Next().String()
	serve(t, world, worldAddr+":7000", "world")
	serve(t, home, hostAddr+":7001", "host")
	serve(t, home, "127.0.0.1:7002", "loopback")
	serve(t, a.NS, "0.0.0.0:7003", "a")
	for _, c := range []struct {
		name string
		from *os.File
		to   string
		want string
	}{
		{"a outwards", a.NS, worldAddr + ":7000", "world saw " + hostAddr},
		{"b outwards", b.NS, worldAddr + ":7000", "world saw " + hostAddr},
		{"a to the host", a.NS, hostAddr + ":7001", "host saw " + a.Address.String()},
		{"a to the host's loopback", a.NS, "127.0.0.1:7002", "nothing"},
		{"a to the host's loopback by the gateway", a.NS, gateway + ":7002", "nothing"},
		{"the host to a", nil, a.Address.String() + ":7003", "a saw " + gateway},
		{"b to a", b.NS, a.Address.String() + ":7003", "nothing"},
		{"a to itself", a.NS, a.Address.String() + ":7003", "a saw " + a.Address.String()},
	} {
		if got := ask(t, c.from, c.to, c.want); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	// Somebody in the world who knows the address and has a route to it.
	k, err := netlink.NewHandleAt(netns.NsHandle(world.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.RouteAdd(&netlink.Route{Dst: host(a.Address), Gw: net.ParseIP(hostAddr)}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, world, a.Address.String()+":7003", "nothing"); got != "nothing" {
		t.Errorf("the world to a: %s", got)
	}
	if a.Address == b.Address {
		t.Errorf("both have %s", a.Address)
	}
	if want := "nameserver " + worldAddr + "\n"; string(a.ResolvConf) != want {
		t.Errorf("resolv.conf %q", a.ResolvConf)
	}
	if want := fmt.Sprintf("%s\ta\n%s\tgw\n", a.Address, gateway); !strings.HasSuffix(string(a.Hosts), want) {
		t.Errorf("hosts %q, want it to end in %q", a.Hosts, want)
	}
	in(t, a.NS, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := i.Addrs()
		if err != nil || i.MTU != 1400 || len(addrs) != 1 || addrs[0].String() != a.Address.String()+"/32" {
			t.Errorf("eth0: MTU %d, addresses %v, %v", i.MTU, addrs, err)
		}
		return nil
	})
}

// The same through each of the packet filters that a host may have.
func TestBridgeFilters(t *testing.T) {
	for _, c := range []struct {
		name       string
		program    string // that is called iptables
		withoutNFT bool
		before     [][]string // what others have set up
		want       string     // "" is an error
	}{
		{"iptables on nftables drops", "iptables-nft", false, [][]string{{"-P", "FORWARD", "DROP"}}, "world saw " + hostAddr},
		{"iptables on nftables rejects", "iptables-nft", false, [][]string{{"-A", "FORWARD", "-j", "REJECT"}}, "world saw " + hostAddr},
		{"old iptables drops", "iptables-legacy", false, [][]string{{"-P", "FORWARD", "DROP"}}, "world saw " + hostAddr},
		{"old iptables alone", "iptables-legacy", true, nil, "world saw " + hostAddr},
		{"old iptables alone drops", "iptables-legacy", true, [][]string{{"-P", "FORWARD", "DROP"}}, "world saw " + hostAddr},
		{"no packet filter", "", true, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			world := stage(t)
			program := iptables("/usr/sbin/" + c.program)
			if c.program == "" {
				program = "/nowhere/iptables"
			}
			for _, args := range c.before {
				if err := program.run(t.Context(), args...); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() {
				ctx := context.Background()
				if c.program != "" {
					_ = program.run(ctx, "-P", "FORWARD", "ACCEPT")
					_ = program.run(ctx, "-F", "FORWARD")
				}
				for _, args := range [][]string{{"nft", "flush", "ruleset"}} {
					if out, err := exec.CommandContext(ctx, "/usr/sbin/"+args[0], args[1:]...).CombinedOutput(); err != nil {
						t.Errorf("%v: %v %s", args, err, out)
					}
				}
			})
			rules := func() string {
				if c.program == "" {
					return ""
				}
				out, err := exec.CommandContext(t.Context(), "/usr/sbin/"+c.program+"-save").CombinedOutput()
				if err != nil {
					t.Fatal(err)
				}
				var lines []string
				for line := range strings.Lines(string(out)) {
					if strings.HasPrefix(line, "-") {
						lines = append(lines, line)
					}
				}
				return strings.Join(lines, "")
			}
			before := rules()
			h := newHost(t, Options{Etc: etc(t), Pool: -1, withoutNFT: c.withoutNFT, iptables: program})
			spec := Spec{ID: "a", Network: berth.Network{Mode: berth.NetworkBridge}}
			a, err := h.Setup(t.Context(), spec)
			if c.want == "" {
				if !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "apt-get install iptables") {
					t.Errorf("without any: %v", err)
				}
				if left, err := plugged(); err != nil || len(left) > 0 {
					t.Errorf("left: %v %v", left, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			spec.ID = "b"
			b, err := h.Setup(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			serve(t, world, worldAddr+":7000", "world")
			serve(t, a.NS, "0.0.0.0:7003", "a")
			for _, n := range []*Net{a, b} {
				if got := ask(t, n.NS, worldAddr+":7000", c.want); got != c.want {
					t.Errorf("outwards: %s, want %s", got, c.want)
				}
			}
			if got := ask(t, b.NS, a.Address.String()+":7003", "nothing"); got != "nothing" {
				t.Errorf("b to a: %s", got)
			}
			if err := errors.Join(a.Close(), b.Close()); err != nil {
				t.Error(err)
			}
			if _, err := h.Recover(t.Context(), "nobody"); err != nil {
				t.Error(err)
			}
			if after := rules(); after != before {
				t.Errorf("rules after:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// A sandbox cannot speak as another.
func TestBridgeSourceAddress(t *testing.T) {
	world := stage(t)
	h := newHost(t, Options{Etc: etc(t), Pool: -1})
	a, b := bridge(t, h, "a"), bridge(t, h, "b")
	var l net.PacketConn
	in(t, world, func() (err error) {
		l, err = net.ListenPacket("udp4", worldAddr+":7000")
		return err
	})
	defer l.Close()
	k, err := netlink.NewHandleAt(netns.NsHandle(a.NS.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	eth0, err := k.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.AddrAdd(eth0, &netlink.Addr{IPNet: host(b.Address)}); err != nil {
		t.Fatal(err)
	}
	send := func(from netip.Addr, text string) {
		in(t, a.NS, func() error {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: from.AsSlice()}}
			c, err := d.DialContext(t.Context(), "udp4", worldAddr+":7000")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(text))
			return err
		})
	}
	send(b.Address, "false")
	send(a.Address, "true")
	buf := make([]byte, 100)
	_ = l.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := l.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "true" {
		t.Errorf("the world heard %q first: %v", buf[:n], err)
	}
}

// state is all that mode bridge changes on a host.
func state(t *testing.T) map[string]string {
	t.Helper()
	s := map[string]string{}
	for name, args := range map[string][]string{
		"links": {"ip", "-o", "link"}, "routes": {"ip", "route"}, "nft": {"nft", "list", "tables"},
	} {
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
		s[name] = string(out)
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/up0/forwarding")
	if err != nil {
		t.Fatal(err)
	}
	s["forwarding"] = string(b)
	return s
}

func TestBridgeLeavesNothing(t *testing.T) {
	stage(t)
	before := state(t)
	opts := Options{Etc: etc(t), Pool: -1, Dir: t.TempDir()}
	h := New(opts)
	a, b := bridge(t, h, "a"), bridge(t, h, "b")
	during := state(t)
	for name := range before {
		if before[name] == during[name] {
			t.Errorf("%s did not change: %s", name, before[name])
		}
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || string(b) != "0\n" {
		t.Errorf("forwarding of all links: %q %v", b, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	// Another's sandbox is still there.
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if s := state(t); s["nft"] != during["nft"] || s["forwarding"] != during["forwarding"] {
		t.Errorf("with one sandbox left: %v, want %v", s, during)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := New(opts).Recover(t.Context(), "somebody"); err != nil {
		t.Error(err)
	}
	if after := state(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("after: %v\nbefore: %v", after, before)
	}
	for _, n := range []*Net{a, b} {
		if err := n.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("closing again: %v", err)
		}
	}
}

// owner is a process that holds a sandbox of mode bridge until it is killed.
func owner(args []string) error {
	h := New(Options{Dir: args[0], Etc: args[1], Pool: -1})
	n, err := h.Setup(context.Background(), Spec{Instance: args[2], ID: "s", Network: berth.Network{Mode: berth.NetworkBridge}})
	if err != nil {
		return err
	}
	fmt.Println(n.Address)
	if len(args) > 3 { // a process of the sandbox that outlives its owner
		c := exec.Command("sleep", "100")
		in := make(chan error)
		go func() {
			in <- inThread(func() error {
				if err := unix.Setns(int(n.NS.Fd()), unix.CLONE_NEWNET); err != nil {
					return err
				}
				return c.Start()
			})
		}()
		if err := <-in; err != nil {
			return err
		}
		fmt.Println(c.Process.Pid)
	}
	_, _ = io.ReadAll(os.Stdin)
	return nil
}

func startOwner(t *testing.T, args ...string) (c *exec.Cmd, lines []string) {
	t.Helper()
	c = exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{"owner"}, args...)...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	r := bufio.NewReader(out)
	for range len(args) - 2 {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	return c, lines
}

func TestBridgeRecovers(t *testing.T) {
	stage(t)
	before := state(t)
	dir, etc := t.TempDir(), etc(t)
	victim, lines := startOwner(t, dir, etc, "mine", "with a process")
	other, otherLines := startOwner(t, dir, etc, "others")
	if lines[0] == otherLines[0] {
		t.Errorf("two processes have one address, %s", lines[0])
	}
	_ = victim.Process.Kill()
	_ = victim.Wait()
	pid, err := strconv.Atoi(lines[1])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	h := newHost(t, Options{Dir: dir, Etc: etc, Pool: -1})
	removed, err := h.Recover(t.Context(), "mine")
	if want := []string{"link " + linkName(netip.MustParseAddr(lines[0]))}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("recovered %q %v, want %q", removed, err, want)
	}
	left, err := plugged()
	if want := "berth others s"; err != nil || len(left) != 1 || left[netip.MustParseAddr(otherLines[0])] != want {
		t.Errorf("left: %v %v", left, err)
	}
	// Without any process in its namespace a link goes by itself; the rules wait for somebody to remove them.
	_ = other.Process.Kill()
	_ = other.Wait()
	for end := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if left, err = plugged(); err != nil {
			t.Fatal(err)
		}
	}
	removed, err = h.Recover(t.Context(), "mine")
	if want := []string{"packet filter rules", "forwarding on up0"}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("recovered %q %v, want %q", removed, err, want)
	}
	if after := state(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("after: %v\nbefore: %v", after, before)
	}
}

func TestBridgeAddressesRunOut(t *testing.T) {
	stage(t)
	h := newHost(t, Options{Etc: etc(t), Pool: -1, Subnet: netip.MustParsePrefix("192.0.2.8/29")})
	seen := map[netip.Addr]bool{}
	for i := range 5 {
		seen[bridge(t, h, "s"+strconv.Itoa(i)).Address] = true
	}
	want := map[netip.Addr]bool{}
	for i := 10; i < 15; i++ {
		want[netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})] = true
	}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("addresses %v, want %v", seen, want)
	}
	_, err := h.Setup(t.Context(), Spec{ID: "one-more", Network: berth.Network{Mode: berth.NetworkBridge}})
	if !errors.Is(err, berth.ErrExhausted) {
		t.Errorf("one more: %v", err)
	}
}

func TestChoose(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for _, c := range []struct {
		name  string
		used  []netip.Prefix
		taken map[netip.Addr]string
		want  string
	}{
		{"nothing in the way", nil, nil, "10.201.0.0/16"},
		{"one network in the way", []netip.Prefix{p("10.201.7.0/24")}, nil, "10.202.0.0/16"},
		{"all of 10 in the way", []netip.Prefix{p("10.0.0.0/8")}, nil, "172.31.0.0/16"},
		{"a host in the way", []netip.Prefix{p("10.0.0.0/8"), p("172.16.0.0/12"), p("192.168.250.7/32")}, nil, "192.168.249.0/24"},
		{"sandboxes", nil, map[netip.Addr]string{a("10.205.3.4"): ""}, "10.205.0.0/16"},
		{"everything in the way", []netip.Prefix{p("10.0.0.0/8"), p("172.16.0.0/12"), p("192.168.0.0/16")}, nil, "invalid Prefix"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := choose(c.used, c.taken)
			if got.String() != c.want || (err != nil) != (c.want == "invalid Prefix") {
				t.Errorf("%s %v, want %s", got, err, c.want)
			}
		})
	}
}
