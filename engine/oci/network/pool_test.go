package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// testPool is a pool that nothing is done for unless the test does it.
func testPool(t *testing.T, size int) *pool {
	t.Helper()
	p := idlePool(size)
	p.rest = 0
	t.Cleanup(p.close)
	return p
}

// known gives the pool what a new namespace looks like.
func (p *pool) known(t *testing.T) *pool {
	t.Helper()
	ns := newNS(t)
	var err error
	if p.like, err = look(ns); err != nil {
		t.Fatal(err)
	}
	return p
}

func newNS(t *testing.T) *os.File {
	t.Helper()
	ns, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func inode(t *testing.T, ns *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// again puts a namespace back, waits until it was looked at, and reports whether it is ready.
func (p *pool) again(t *testing.T, ns *os.File) bool {
	t.Helper()
	if err := p.put(ns); err != nil {
		t.Fatal(err)
	}
	wait, any := p.nextRested()
	if !any {
		t.Fatal("nothing rests")
	}
	time.Sleep(wait)
	p.proveRested()
	if len(p.resting) > 0 {
		t.Fatal("it was not looked at")
	}
	return slices.Contains(p.ready, ns)
}

// socket makes a socket that is closed with the test.
func socket(t *testing.T, family, kind int) (int, error) {
	t.Helper()
	s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		t.Cleanup(func() { _ = unix.Close(s) })
	}
	return s, err
}

func TestPoolGivesAgain(t *testing.T) {
	p := testPool(t, 2).known(t)
	for i, f := range map[string]func() error{
		"nothing": func() error { return nil },
		"unix": func() error {
			l, err := net.Listen("unix", "@name")
			if err != nil {
				return err
			}
			return l.Close()
		},
		"sockets": func() error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return unix.Close(s)
		},
	} {
		t.Run(i, func(t *testing.T) {
			ns, err := p.get()
			if err != nil {
				t.Fatal(err)
			}
			want := inode(t, ns)
			in(t, ns, f)
			p.rest = 50 * time.Millisecond
			if !p.again(t, ns) {
				t.Fatal("a namespace without a trace was closed")
			}
			ns, err = p.get()
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			if got := inode(t, ns); got != want {
				t.Errorf("namespace %d, want %d, which came back", got, want)
			}
		})
	}
}

// What a task has left, each by calls that need no CAP_NET_ADMIN unless the name says otherwise.
func TestPoolClosesWhatHasTraces(t *testing.T) {
	closeIt := func(s int, errs ...error) error { return errors.Join(append(errs, unix.Close(s))...) }
	loop4, loop6 := [4]byte{127, 0, 0, 1}, [16]byte{15: 1}
	for _, c := range []struct {
		name string
		do   func(t *testing.T) error
	}{
		{"socket that somebody has", func(t *testing.T) error {
			_, err := socket(t, unix.AF_INET, unix.SOCK_DGRAM)
			return err
		}},
		{"unix socket that somebody has", func(t *testing.T) error {
			_, err := socket(t, unix.AF_UNIX, unix.SOCK_STREAM)
			return err
		}},
		{"socket in flight", func(t *testing.T) error {
			var outside [2]int
			out := make(chan error)
			go func() { // of another namespace
				var err error
				outside, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				out <- err
			}()
			if err := <-out; err != nil {
				return err
			}
			t.Cleanup(func() { _, _ = unix.Close(outside[0]), unix.Close(outside[1]) })
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return closeIt(s, unix.Sendmsg(outside[0], []byte{0}, unix.UnixRights(s), nil, 0))
		}},
		{"packet", func(t *testing.T) error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return closeIt(s, unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: loop4}))
		}},
		{"connection in TIME_WAIT", func(*testing.T) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			return errors.Join(c.Close(), l.Close())
		}},
		{"frame", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return closeIt(s, unix.Sendto(s, []byte("x"), 0, &unix.SockaddrLinklayer{Protocol: 0xb588, Ifindex: 1, Halen: 6}))
		}},
		{"packet of IPv6 without a route", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet6{Port: 9, Addr: [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}}); !errors.Is(err, unix.ENETUNREACH) {
				return closeIt(s, fmt.Errorf("sent: %w", err))
			}
			return closeIt(s)
		}},
		{"packet without a route", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 1}}); !errors.Is(err, unix.ENETUNREACH) {
				return closeIt(s, fmt.Errorf("sent: %w", err))
			}
			return closeIt(s)
		}},
		{"route of a connected socket", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return closeIt(s, unix.Connect(s, &unix.SockaddrInet6{Port: 9, Addr: loop6}))
		}},
		{"flow label", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			const manage, get, create, exclusive = 32, 0, 1, 1 // IPV6_FLOWLABEL_MGR, IPV6_FL_A_GET, IPV6_FL_F_CREATE, IPV6_FL_S_EXCL
			req := append(loop6[:], 0, 1, 0x23, 0x45, get, exclusive, create, 0, 6, 0, 6, 0, 0, 0, 0, 0)
			return closeIt(s, unix.SetsockoptString(s, unix.IPPROTO_IPV6, manage, string(req)))
		}},
		{"key of TCP Fast Open", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return closeIt(s, unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5), unix.Listen(s, 5))
		}},
		// Their reports are sent a while later, when the socket is closed already.
		{"group", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return closeIt(s, unix.SetsockoptIPMreq(s, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreq{Multiaddr: [4]byte{239, 1, 2, 3}, Interface: loop4}))
		}},
		{"group of IPv6", func(*testing.T) error {
			s, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return closeIt(s, unix.SetsockoptIPv6Mreq(s, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: [16]byte{0: 0xff, 1: 2, 14: 0x12, 15: 0x34}, Interface: 1}))
		}},
		{"sysctl of CAP_NET_ADMIN", func(*testing.T) error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_default_ttl", []byte("63"), 0)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := testPool(t, 2).known(t)
			p.rest = restTime
			ns := newNS(t)
			in(t, ns, func() error { return c.do(t) })
			if p.again(t, ns) {
				t.Error("it is to be given away again")
			}
			if err := ns.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("it was not closed: %v", err)
			}
		})
	}
}

func TestOwnSockets(t *testing.T) {
	const rest = "TCP: inuse 0 orphan 3 tw 0 alloc 14 mem 292\nUDP: inuse 0 mem 5\nFRAG: inuse 0 memory 0\n"
	const own = "TCP: inuse 0 orphan tw 0 alloc mem UDP: inuse 0 mem FRAG: inuse 0 memory 0 "
	for _, c := range []struct {
		name, sockstat string
		none           bool
		own            string
	}{
		{"none", "sockets: used 0\n" + rest, true, own},
		{"the host's numbers differ", "sockets: used 0\n" + strings.NewReplacer("orphan 3", "orphan 4", "alloc 14", "alloc 9", "mem 5", "mem 6").Replace(rest), true, own},
		{"one", "sockets: used 1\n" + rest, false, own},
		{"ten", "sockets: used 10\n" + rest, false, own},
		{"waits", "sockets: used 0\n" + strings.Replace(rest, "tw 0", "tw 1", 1), true, strings.Replace(own, "tw 0", "tw 1", 1)},
		{"the kernel's own", "sockets: used 0\n" + strings.Replace(rest, "UDP: inuse 0", "UDP: inuse 1", 1), true, strings.Replace(own, "UDP: inuse 0", "UDP: inuse 1", 1)},
		{"fragments", "sockets: used 0\n" + strings.Replace(rest, "memory 0", "memory 9", 1), true, strings.Replace(own, "memory 0", "memory 9", 1)},
		{"no file", "", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if none, got := ownSockets([]byte(c.sockstat)); none != c.none || got != c.own {
				t.Errorf("%v %q, want %v %q", none, got, c.none, c.own)
			}
		})
	}
}

// What differs in any of the files that are looked at, and in the numbers of sockets, is a trace.
func TestPoolComparesAll(t *testing.T) {
	p := testPool(t, 1).known(t)
	like := p.like
	for i, name := range append(slices.Clone(traceFiles), "sockstat") {
		other := &traces{sockets: like.sockets, files: slices.Clone(like.files)}
		if i < len(traceFiles) {
			other.files[i] = append([]byte("x"), other.files[i]...)
		} else {
			other.sockets += "x"
		}
		p.like = other
		if p.again(t, newNS(t)) {
			t.Errorf("%s was not compared", name)
		}
	}
}

// A namespace that nobody knows to be as a new one is closed.
func TestPoolKnowsNothing(t *testing.T) {
	p := testPool(t, 1)
	if p.again(t, newNS(t)) {
		t.Error("it is to be given away again")
	}
}

func TestPoolRoom(t *testing.T) {
	p := testPool(t, 1).known(t)
	var put []*os.File
	for range maxReady + 1 {
		put = append(put, newNS(t))
		if err := p.put(put[len(put)-1]); err != nil {
			t.Fatal(err)
		}
	}
	p.proveRested()
	if !slices.Equal(p.ready, put[:maxReady]) {
		t.Errorf("%d are ready, want the first %d", len(p.ready), maxReady)
	}
	if err := put[maxReady].Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("one more was not closed: %v", err)
	}
	p.rest = time.Hour
	for i := range maxResting + 1 {
		if err := p.put(newNS(t)); err != nil {
			t.Fatal(err)
		}
		if want := min(i+1, maxResting); len(p.resting) != want {
			t.Fatalf("%d rest, want %d", len(p.resting), want)
		}
	}
}

// A namespace is made in advance when fewer than half are ready, not each time that one is taken.
func TestPoolFills(t *testing.T) {
	p := testPool(t, 4)
	for range 4 {
		p.ready = append(p.ready, newNS(t))
	}
	for left, want := range []int{0, 0, 1, 1} {
		if _, err := p.get(); err != nil {
			t.Fatal(err)
		}
		if len(p.low) != want {
			t.Errorf("%d left: filling is %d", 3-left, len(p.low))
		}
	}
	<-p.low
	ns, err := p.get()
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Close()
	if len(p.low) != 1 {
		t.Error("an empty pool is not filled")
	}
}

// Namespaces go to and fro while the pool is closed.
func TestPoolAtOnce(t *testing.T) {
	before := namespaces(t)
	p := newPool(3)
	p.rest = time.Millisecond
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				ns, err := p.get()
				if err != nil {
					t.Error(err)
					return
				}
				if err := p.put(ns); err != nil {
					t.Error(err)
				}
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	wg.Go(p.close)
	wg.Wait()
	heldAgain(t, before)
}

// A whole pool gives out again what comes back, and holds nothing when it is closed.
func TestPoolRuns(t *testing.T) {
	before := namespaces(t)
	p := newPool(1)
	ns, err := p.get()
	if err != nil {
		t.Fatal(err)
	}
	want := inode(t, ns)
	if err := p.put(ns); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		found := slices.ContainsFunc(p.ready, func(ns *os.File) bool { return inode(t, ns) == want })
		p.mu.Unlock()
		if found {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it did not come back")
		}
	}
	rests := newNS(t)
	if err := p.put(rests); err != nil {
		t.Fatal(err)
	}
	p.close()
	late := newNS(t)
	if err := p.put(late); err != nil {
		t.Fatal(err)
	}
	heldAgain(t, before)
}

// namespaces counts the network namespaces that this process holds, by descriptors and by threads that are in one.
func namespaces(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "net:") {
			n++
		}
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range threads {
		if at, err := os.Readlink("/proc/self/task/" + tid.Name() + "/ns/net"); err == nil && at != home {
			n++
		}
	}
	return n
}

// heldAgain checks that as many are held as before: threads that could not go home may take a while to end.
func heldAgain(t *testing.T, before int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); namespaces(t) != before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d namespaces are held, %d before", namespaces(t), before)
		}
	}
}

func TestReturn(t *testing.T) {
	stage(t)
	h := newHost(t, Options{Pool: 2})
	rests := func() int {
		h.pool.mu.Lock()
		defer h.pool.mu.Unlock()
		return len(h.pool.resting)
	}
	n, err := h.Setup(t.Context(), Spec{ID: "b", Network: berth.Network{Mode: berth.NetworkBridge}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Return(); err != nil || rests() != 0 {
		t.Errorf("mode bridge: %d rest, %v", rests(), err)
	}
	if err := n.NS.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("mode bridge: not closed: %v", err)
	}
	n, err = h.Setup(t.Context(), Spec{ID: "h", Network: berth.Network{Mode: berth.NetworkHost}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Return(); err != nil || rests() != 0 {
		t.Errorf("mode host: %d rest, %v", rests(), err)
	}
	if n, err = h.Setup(t.Context(), Spec{ID: "n"}); err != nil {
		t.Fatal(err)
	}
	if err := n.Return(); err != nil || rests() != 1 {
		t.Errorf("mode none: %d rest, %v", rests(), err)
	}
}
