package docker

import (
	"bytes"
	"errors"
	"testing"

	"github.com/berth-project/berth"
)

// TestKindsOfWords: what daemons say in words alone.
func TestKindsOfWords(t *testing.T) {
	for said, kind := range map[string]error{
		"denied":                             berth.ErrDenied,
		"Error response from daemon: denied": berth.ErrDenied,
		"denied: requested access to the resource is denied":                                                            berth.ErrDenied,
		"reading manifest latest in r.example/a: denied":                                                                berth.ErrDenied,
		"initializing source: invalid status code: 403 (Forbidden)":                                                     berth.ErrDenied,
		`error parsing HTTP 403 response body: invalid character '<' looking for beginning of value: "<html>not found"`: berth.ErrDenied,
		`error parsing HTTP 404 response body: invalid character '<' looking for beginning of value: "<html>"`:          berth.ErrNotFound,
		`error parsing HTTP 502 response body: invalid character '<' looking for beginning of value: "<html>"`:          berth.ErrUnavailable,
		"error unmarshalling content: invalid character '<' looking for beginning of value":                             berth.ErrInvalid,
		"OCI runtime create failed: open /x: permission denied":                                                         berth.ErrUnavailable,
		"Unable to find group nog: no matching entries in group file":                                                   berth.ErrInvalid,
		"Cannot mkdir: /etc/passwd is not a directory":                                                                  berth.ErrInvalid,
		`workdir "/etc/passwd" exists on container 7b65, but is not a directory`:                                        berth.ErrInvalid,
	} {
		if got := kindOf(errors.New(said)); !errors.Is(got, kind) {
			t.Errorf("%s: %v; want %v", said, got, kind)
		}
	}
}

// TestRefusal: what may be the daemon's word in the place of a command's output is held, and no line that is the command's.
func TestRefusal(t *testing.T) {
	for written, held := range map[string]bool{
		"OCI run":                               true,
		"OCI runtime exec failed: exec: no\r\n": true,
		"unable to find":                        true,
		"unable to find user me: no matching entries in passwd file\r\n":     true,
		"unable to find group us: no matching entries in group file\r\n":     true,
		"unable to find user me: asking another\n":                           false,
		"unable to find package":                                             false,
		"un":                                                                 true,
		"output\nunable to find user me: no matching entries in passwd file": false,
	} {
		var out bytes.Buffer
		r := &refusal{w: &out, word: refusedWord}
		if _, err := r.Write([]byte(written)); err != nil || (out.Len() == 0) != held {
			t.Errorf("%q: wrote %q: %v", written, out.String(), err)
		}
	}
}

// TestSamePort: a port of the host is published once.
func TestSamePort(t *testing.T) {
	for _, row := range []struct {
		name string
		a, b berth.Port
		same bool
	}{
		{"any that is free", berth.Port{Container: 80}, berth.Port{Container: 80}, false},
		{"another", berth.Port{Host: 1, Container: 80}, berth.Port{Host: 2, Container: 80}, false},
		{"twice", berth.Port{Host: 1, Container: 80}, berth.Port{Host: 1, Container: 81, Protocol: "tcp"}, true},
		{"of another protocol", berth.Port{Host: 1, Container: 80}, berth.Port{Host: 1, Container: 80, Protocol: "udp"}, false},
		{"of all addresses and one", berth.Port{Host: 1, Container: 80}, berth.Port{HostIP: "127.0.0.1", Host: 1, Container: 80}, true},
		{"of all of IPv4 and one", berth.Port{HostIP: "0.0.0.0", Host: 1, Container: 80}, berth.Port{HostIP: "127.0.0.1", Host: 1, Container: 80}, true},
		{"of all of IPv6 and one of IPv4", berth.Port{HostIP: "::", Host: 1, Container: 80}, berth.Port{HostIP: "127.0.0.1", Host: 1, Container: 80}, false},
		{"of two addresses", berth.Port{HostIP: "127.0.0.2", Host: 1, Container: 80}, berth.Port{HostIP: "127.0.0.1", Host: 1, Container: 80}, false},
	} {
		err := checkPorts(berth.Network{Mode: berth.NetworkBridge, Ports: []berth.Port{row.a, row.b}})
		if errors.Is(err, berth.ErrInvalid) != row.same {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}
