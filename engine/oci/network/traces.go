package network

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// traceFiles are the files of /proc in which a namespace shows what was done in it, the likeliest first. They are those of
// the thread that opens them; none lies in a directory below net, where older kernels mix namespaces up.
var traceFiles = []string{
	netDir + "dev", netDir + "snmp", netDir + "netstat", netDir + "snmp6", netDir + "sockstat6",
	netDir + "rt6_stats",     // routes that a socket was connected by
	netDir + "ip6_flowlabel", // labels outlive their sockets
	"/proc/sys/net/ipv4/tcp_fastopen_key",
}

const netDir = "/proc/thread-self/net/"

// traces are what is to be seen of what was done in a namespace.
type traces struct {
	sockets string   // see ownSockets
	files   [][]byte // of traceFiles; nil: this kernel has none
}

// look reads the traces of a namespace that is new.
func look(ns *os.File) (*traces, error) {
	var t traces
	err := inThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		raw, err := readTrace(netDir+"sockstat", buf)
		if err != nil {
			return err
		}
		_, t.sockets = ownSockets(raw)
		for _, name := range traceFiles {
			raw, err := readTrace(name, buf)
			if err != nil {
				return err
			}
			t.files = append(t.files, bytes.Clone(raw))
		}
		if t.files[0] == nil {
			return fmt.Errorf("%s: %w", traceFiles[0], unix.ENOENT)
		}
		return nil
	})
	return &t, err
}

// same answers which of the namespaces, at most room, have no socket and the traces of a new one.
func (t *traces) same(rested []resting, room int) (proved []*os.File) {
	_ = inThread(func() error {
		buf := make([]byte, 64<<10)
		for _, r := range rested {
			if len(proved) < room && unix.Setns(int(r.ns.Fd()), unix.CLONE_NEWNET) == nil && t.isHere(buf) {
				proved = append(proved, r.ns)
			}
		}
		return nil
	})
	return proved
}

// isHere looks at the thread's namespace. It must open no socket: that would be counted.
func (t *traces) isHere(buf []byte) bool {
	raw, err := readTrace(netDir+"sockstat", buf)
	if err != nil {
		return false
	}
	if none, sockets := ownSockets(raw); !none || sockets != t.sockets {
		return false
	}
	for i, name := range traceFiles {
		raw, err := readTrace(name, buf)
		if err != nil || (raw == nil) != (t.files[i] == nil) || !bytes.Equal(raw, t.files[i]) {
			return false
		}
	}
	return true
}

// readTrace reads a small file into buf; nil is one that is not there.
func readTrace(name string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	for n := 0; n < len(buf); {
		m, err := unix.Read(fd, buf[n:])
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if m == 0 {
			return buf[:n:n], nil
		}
		n += m
	}
	return nil, fmt.Errorf("read %s: %w", name, unix.EFBIG)
}

// ownSockets says of a sockstat whether the namespace has no socket, those in flight between processes among them; and
// gives the numbers that are the namespace's own: some are the whole host's.
func ownSockets(sockstat []byte) (none bool, own string) {
	first, rest, _ := strings.Cut(string(sockstat), "\n")
	var b strings.Builder
	for line := range strings.Lines(rest) {
		f := strings.Fields(line)
		for i, word := range f {
			host := i > 0 && slices.Contains([]string{"orphan", "alloc", "mem"}, f[i-1])
			if !host {
				b.WriteString(word + " ")
			}
		}
	}
	return first == "sockets: used 0", b.String()
}
