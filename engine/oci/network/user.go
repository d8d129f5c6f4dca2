package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Without root no link of the host can be made. Then a process beside the sandbox plays its network: it reads
// the packets of a tap device in the namespace and opens ordinary sockets of the user's for them.

const remedyUser = "apt-get install slirp4netns (or passt), or use network mode none or host"

// userAddress is what the sandbox has with slirp4netns; it is fixed, as nobody else can see it.
var (
	userAddress  = netip.AddrFrom4([4]byte{10, 0, 2, 100})
	userResolver = netip.AddrFrom4([4]byte{10, 0, 2, 3}) // asks what the host's resolv.conf names, on loopback too
)

// canRoute reports whether this process may change the host's links and rules at all: it is root, and not in
// a user namespace.
func canRoute() bool {
	if os.Geteuid() != 0 {
		return false
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return true // a kernel without user namespaces
	}
	return strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}

// Check reports whether this host can make networks of a mode: ErrUnsupported, with the remedy.
func Check(mode berth.NetworkMode) error {
	if mode != berth.NetworkBridge || canRoute() {
		return nil
	}
	h := New(Options{Pool: -1})
	defer func() { _ = h.Close() }()
	if why, remedy := h.missing(); why != "" {
		return fmt.Errorf("%w: %s: %s", berth.ErrUnsupported, why, remedy)
	}
	return nil
}

// missing says what mode bridge lacks without root; "" is nothing.
func (h *Host) missing() (why, remedy string) {
	if name, _ := h.userProgram(); name == "" {
		return "without root it needs slirp4netns or pasta, and neither is there", remedyUser
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case err == nil:
		_ = f.Close()
		return "", ""
	case errors.Is(err, fs.ErrPermission):
		return "without root it needs to open /dev/net/tun, and may not", "as root: chmod 666 /dev/net/tun, as it is on most systems; or use network mode none or host"
	}
	return "without root it needs /dev/net/tun, which is not there", "as root: modprobe tun; or use network mode none or host"
}

// userNetwork connects a namespace through a process.
func (h *Host) userNetwork(ctx context.Context, n *Net) error {
	var args []string
	switch name, path := h.userProgram(); name {
	case "slirp4netns":
		args = []string{path, "--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--netns-type=path", "/proc/self/fd/3", inside}
	case "pasta":
		args = []string{
			path, "--foreground", "--quiet", "--config-net", "--ipv4-only", "--no-map-gw", "--netns-only", "--ns-ifname", inside,
			"--address", userAddress.String(), "--netmask", "24", "--gateway", "10.0.2.2", "--dns-forward", userResolver.String(),
			"--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none", "--netns", "/proc/self/fd/3",
		}
	default:
		why, remedy := h.missing()
		return fmt.Errorf("%w: %s: %s", berth.ErrUnsupported, why, remedy)
	}
	p, err := startUser(args, n.NS)
	if err != nil {
		return err
	}
	n.close = p.stop
	if err := p.ready(ctx, n.NS); err != nil {
		_ = p.stop()
		n.close = func() error { return nil }
		return err
	}
	return nil
}

// userProgram finds the program that plays the network.
func (h *Host) userProgram() (name, path string) {
	for _, name := range []string{"slirp4netns", "pasta"} {
		if h.opts.userProgram != "" && h.opts.userProgram != name {
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return name, path
		}
	}
	return "", ""
}

// userProcess is a running slirp4netns or pasta.
type userProcess struct {
	cmd   *exec.Cmd
	hold  *os.File // the process is killed when the last copy of this is closed: when we die, too
	ended chan struct{}
	text  syncBuffer // what it wrote

	once sync.Once
}

// guard runs a program and kills it when its own standard input ends. Neither program can be relied upon to
// end with its parent: they change their credentials, at which the kernel forgets the parent-death signal.
const guard = `exec 4<&0
"$@" </dev/null 4<&- & p=$!
(read -r _ <&4; kill -9 $p) & w=$!
exec 4<&-
wait $p; s=$?
kill -9 $w
exit $s`

func startUser(args []string, ns *os.File) (*userProcess, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &userProcess{hold: w, ended: make(chan struct{})}
	p.cmd = exec.Command("/bin/sh", append([]string{"-c", guard, "sh"}, args...)...) //nolint:noctx // ends with the sandbox
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = r, &p.text, &p.text
	p.cmd.ExtraFiles = []*os.File{ns}
	p.cmd.WaitDelay = time.Second
	err = p.cmd.Start()
	_ = r.Close()
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// ready waits until the sandbox's link has its address and a default route.
func (p *userProcess) ready(ctx context.Context, ns *os.File) error {
	k, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer k.Close()
	deadline := time.After(10 * time.Second)
	for {
		routes, err := k.RouteList(nil, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Gw != nil {
				return nil
			}
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%w: %s ended: %s", berth.ErrUnavailable, p.cmd.Args[4], p.text.lines())
		case <-deadline:
			return fmt.Errorf("%w: %s did not get ready: %s", berth.ErrUnavailable, p.cmd.Args[4], p.text.lines())
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// stop kills the process and waits for its end.
func (p *userProcess) stop() error {
	var err error
	p.once.Do(func() {
		err = p.hold.Close()
		<-p.ended
	})
	return err
}

// lackUser says what mode bridge lacks for a user without root.
func (h *Host) lackUser() []berth.Lack {
	if canRoute() {
		return nil
	}
	why, remedy := h.missing()
	if why == "" {
		return nil
	}
	return []berth.Lack{{What: "network mode bridge", Why: why, Remedy: remedy}}
}

// syncBuffer keeps the end of what a process writes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b.Len() > 8<<10 {
		s.b.Reset()
	}
	return s.b.Write(p)
}

// lines are the last lines, joined: the cause may stand in any of them.
func (s *syncBuffer) lines() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	const most = 6
	var lines []string
	for l := range strings.Lines(s.b.String()) {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	return strconv.Quote(strings.Join(lines[max(0, len(lines)-most):], "; "))
}
