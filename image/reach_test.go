package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/berth-project/berth"
)

func TestZones(t *testing.T) {
	for addr, want := range map[string]zone{
		"203.0.113.9": zonePublic, "2001:db8::1": zonePublic, "9.9.9.9": zonePublic, "64:ff9b::909:909": zonePublic,
		"10.0.0.1": zonePrivate, "172.31.255.255": zonePrivate, "192.168.1.1": zonePrivate, "100.64.0.1": zonePrivate, "fd00::1": zonePrivate,
		"::ffff:10.0.0.1": zonePrivate, "64:ff9b::a00:1": zonePrivate,
		"127.0.0.1": zoneHere, "127.9.9.9": zoneHere, "::1": zoneHere, "0.0.0.0": zoneHere, "0.1.2.3": zoneHere, "::": zoneHere, "::ffff:127.0.0.1": zoneHere, "64:ff9b::7f00:1": zoneHere,
		"169.254.169.254": zoneNever, "::ffff:169.254.169.254": zoneNever, "fe80::1%eth0": zoneNever, "fd00:ec2::254": zoneNever, "100.100.100.200": zoneNever,
		"224.0.0.1": zoneNever, "ff02::1": zoneNever, "255.255.255.255": zoneNever, "64:ff9b::a9fe:a9fe": zoneNever,
	} {
		if got := zoneOf(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %s; want %s", addr, got, want)
		}
	}
	for host, want := range map[string]bool{"localhost": true, "LOCALHOST.": true, "x.localhost": true, "127.0.0.1": true, "registry.example": false} {
		if z, ok := zoneOfName(host); ok != want || ok && z != zoneHere {
			t.Errorf("%s: %s, %t", host, z, ok)
		}
	}
}

// claimed is a connection that seems to be to another address.
type claimed struct {
	net.Conn
	addr netip.Addr
}

func (c claimed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.addr, 443))
}

// world has names at addresses, and a server that answers for all of them.
type world struct {
	server *httptest.Server
	names  map[string]string // host, and its address
	asked  atomic.Int32      // requests for /stolen
}

func newWorld(t *testing.T, registry http.Handler, names map[string]string) *world {
	t.Helper()
	w := &world{names: names}
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stolen" {
			w.asked.Add(1)
		}
		registry.ServeHTTP(rw, r)
	}))
	w.server.Config.ErrorLog = discardLog() // connections that are refused end in the middle of a handshake
	w.server.StartTLS()
	t.Cleanup(w.server.Close)
	return w
}

func (w *world) transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(addr)
			at := strings.Replace(host, "localhost", "127.0.0.1", 1)
			if a, ok := w.names[host]; ok {
				at = a
			}
			c, err := (&net.Dialer{}).DialContext(ctx, network, w.server.Listener.Addr().String())
			if err != nil {
				return nil, err
			}
			return claimed{c, netip.MustParseAddr(at)}, nil
		},
	}
}

// TestReach has registries send berth to other places: by a redirection, as the place of a layer, and for a token.
// Those that are nearer to this machine than the registry are not asked.
func TestReach(t *testing.T) {
	foreign := noise(t, 100<<10)
	blob, err := foreign.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]string{"world.test": "203.0.113.1", "site.test": "10.0.0.1", "here.test": "127.0.1.1", "link.test": "169.254.169.254"}
	all := []string{
		"world.test:8443", "site.test:8443", "here.test:8443", "link.test", // by name
		"10.9.9.9", "127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0", "169.254.169.254", "[fe80::1]",
	}
	site := []string{"world.test:8443", "site.test:8443", "10.9.9.9"}
	for _, c := range []struct {
		registry string
		may      []string
	}{
		{"world.test", []string{"world.test:8443"}},
		{"site.test", site},
		{"10.0.0.3", site},
		{"here.test", append(site, "here.test:8443", "127.0.0.1", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0")},
	} {
		for _, to := range all {
			may := strings.Contains(" "+strings.Join(c.may, " ")+" ", " "+to+" ")
			target := "https://" + to + "/stolen"
			for how, answer := range sendings(t, foreign.Digest, target) {
				if _, err := netip.ParseAddr(strings.Trim(to, "[]")); how == "token" && err == nil {
					continue // the library refuses these by itself
				}
				t.Run(fmt.Sprintf("%s to %s by %s", c.registry, to, how), func(t *testing.T) {
					img, err := mutate.Append(newImage(t), mutate.Addendum{Layer: foreign, URLs: []string{target}, MediaType: types.DockerForeignLayer})
					if err != nil {
						t.Fatal(err)
					}
					ref, b := serveBad(t, img, nil)
					b.answer = func(w http.ResponseWriter, r *http.Request) bool {
						if r.URL.Path == "/stolen" {
							if how == "token" {
								_, _ = io.WriteString(w, `{"token":"x"}`)
							} else {
								_, _ = w.Write(body)
							}
							return true
						}
						return answer(w, r)
					}
					w := newWorld(t, b, at)
					s := newStore(t, func(o *Options) { o.Transport = w.transport() })
					_, err = s.Image(t.Context(), amd64(c.registry+ref[strings.Index(ref, "/"):]))
					switch {
					case may && (err != nil || w.asked.Load() == 0):
						t.Errorf("%v, asked %d times", err, w.asked.Load())
					case !may && (!errors.Is(err, berth.ErrDenied) || w.asked.Load() > 0 || !strings.Contains(err.Error(), "registry "+c.registry+" sends to https://"+to)):
						t.Errorf("%v, asked %d times", err, w.asked.Load())
					}
				})
			}
		}
	}
}

// sendings are the ways in which a registry sends elsewhere.
func sendings(t *testing.T, digest func() (v1.Hash, error), target string) map[string]func(http.ResponseWriter, *http.Request) bool {
	t.Helper()
	d, err := digest()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]func(http.ResponseWriter, *http.Request) bool{
		"redirection": func(w http.ResponseWriter, r *http.Request) bool {
			is := strings.HasSuffix(r.URL.Path, d.String())
			if is {
				http.Redirect(w, r, target, http.StatusTemporaryRedirect)
			}
			return is
		},
		"place of a layer": func(w http.ResponseWriter, r *http.Request) bool {
			is := strings.HasSuffix(r.URL.Path, d.String())
			if is {
				http.NotFound(w, r)
			}
			return is
		},
		"token": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") != "" {
				return false
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+target+`",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
	}
}

// newProxy tunnels all that it is asked for to one server, and counts that.
func newProxy(t *testing.T, to *httptest.Server) (*url.URL, *atomic.Int32) {
	t.Helper()
	var tunnels atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		tunnels.Add(1)
		out, err := net.Dial("tcp", to.Listener.Addr().String())
		if err != nil || r.Method != http.MethodConnect {
			t.Errorf("%s: %v", r.Method, err)
			return
		}
		defer out.Close()
		rw.WriteHeader(http.StatusOK)
		in, _, err := rw.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer in.Close()
		go func() { _, _ = io.Copy(out, in) }()
		_, _ = io.Copy(in, out)
	}))
	t.Cleanup(proxy.Close)
	u, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u, &tunnels
}

// TestReachByProxy pulls through a proxy on this machine from a registry of the world that sends elsewhere.
func TestReachByProxy(t *testing.T) {
	img := newImage(t, noise(t, 100<<10))
	ref, b := serveBad(t, img, nil)
	w := newWorld(t, b, nil)
	u, tunnels := newProxy(t, w.server)
	b.answer = func(rw http.ResponseWriter, r *http.Request) bool {
		send := isBlob(r) && r.Host == "world.test"
		if send {
			http.Redirect(rw, r, "https://store.test"+r.URL.Path, http.StatusTemporaryRedirect)
		}
		return send
	}
	s := newStore(t, func(o *Options) {
		o.Transport = &http.Transport{Proxy: http.ProxyURL(u), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	})
	if _, err := s.Image(t.Context(), amd64("world.test"+ref[strings.Index(ref, "/"):])); err != nil || tunnels.Load() < 2 {
		t.Errorf("%v, %d tunnels", err, tunnels.Load())
	}
}

// TestReachPastProxy: a registry of the world does not become one of this machine by a proxy that is on it.
func TestReachPastProxy(t *testing.T) {
	ref, b := serveBad(t, newImage(t, noise(t, 100<<10)), nil)
	w := newWorld(t, b, nil)
	u, tunnels := newProxy(t, w.server)
	b.answer = func(rw http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			http.Redirect(rw, r, w.server.URL+"/stolen", http.StatusTemporaryRedirect)
		}
		return isBlob(r)
	}
	s := newStore(t, func(o *Options) {
		o.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Proxy: func(r *http.Request) (*url.URL, error) {
			if isLoopback(r.URL.Host) {
				return nil, nil
			}
			return u, nil
		}}
	})
	_, err := s.Image(t.Context(), amd64("world.test"+ref[strings.Index(ref, "/"):]))
	if !errors.Is(err, berth.ErrDenied) || !strings.Contains(err.Error(), "registry world.test sends to "+w.server.URL) || w.asked.Load() > 0 || tunnels.Load() == 0 {
		t.Errorf("%v, asked %d times, %d tunnels", err, w.asked.Load(), tunnels.Load())
	}
}
