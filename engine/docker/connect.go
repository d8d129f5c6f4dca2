package docker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// endpointFile, in the data directory, is the endpoint that it was last used with: a process that knows the address alone
// (the keeper, a worker, whoever asks about a task later) finds the TLS files by it.
const endpointFile = "endpoint.json"

// endpointOf is where the daemon of a data directory is. An address alone gets the TLS files of what the environment
// means now, if that is the same daemon, else those that it had before, else those that the environment names for any.
func endpointOf(cfg Config, getenv func(string) string) (endpoint, error) {
	if cfg.Host != "" && cfg.Certs != "" {
		return checkHost("docker host", endpoint{cfg.Host, &tlsFiles{Dir: cfg.Certs}})
	}
	at, err := locate(cfg.Host, getenv)
	if err != nil || cfg.Host == "" {
		return at, err
	}
	if now, err := locate("", getenv); err == nil && now.Host == at.Host {
		return now, nil
	}
	var had endpoint
	if raw, err := os.ReadFile(filepath.Join(cfg.Dir, endpointFile)); err == nil && json.Unmarshal(raw, &had) == nil && had.Host == at.Host {
		return had, nil
	}
	return at, nil
}

// keepEndpoint notes where the daemon is.
func keepEndpoint(dir string, at endpoint) error {
	if at.TLS == nil {
		return nil
	}
	return writeJSON(filepath.Join(dir, endpointFile), at)
}

// connect makes a client of a daemon. It does not talk to it yet.
func connect(at endpoint, opts ...client.Opt) (*client.Client, error) {
	u, err := client.ParseHostURL(at.Host)
	if err != nil {
		return nil, fmt.Errorf("docker: %w: %w", berth.ErrInvalid, err)
	}
	opts = append(opts, client.WithAPIVersionFromEnv())
	switch {
	case u.Scheme == "ssh":
		remote, err := parseSSH(at.Host)
		if err != nil {
			return nil, fmt.Errorf("docker: %s: %w: %w", at.Host, berth.ErrInvalid, err)
		}
		if _, err := exec.LookPath("ssh"); err != nil {
			return nil, fmt.Errorf("docker: %s: %w: the ssh command is not on this machine; install it (openssh-client)", at.Host, berth.ErrNotFound)
		}
		// As a socket, whose requests no proxy of the environment gets.
		d := &sshDialer{sshHost: remote, turn: make(chan struct{}, sshAtOnce)}
		opts = append(opts, client.WithHost("unix:///"+u.Host), client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.dial(ctx)
		}))
	case at.TLS != nil:
		conf, err := at.TLS.config()
		if err != nil {
			return nil, fmt.Errorf("docker: %s: %w", at.Host, err)
		}
		opts = append(opts, client.WithHTTPClient(&http.Client{
			Transport:     &http.Transport{TLSClientConfig: conf, MaxIdleConns: 6, IdleConnTimeout: 30 * time.Second},
			CheckRedirect: client.CheckRedirect,
		}), client.WithHost(at.Host))
	case u.Scheme == "tcp" && !loopback(u):
		return nil, fmt.Errorf("docker: %s: %w: without TLS everybody on the way to that host reads what tasks read and write, and is root there; set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH, or use ssh://", at.Host, berth.ErrDenied)
	default:
		opts = append(opts, client.WithHost(at.Host))
	}
	api, err := client.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("docker: %w: %w", berth.ErrInvalid, err)
	}
	return api, nil
}

// loopback reports whether what is sent to a host leaves this machine not.
func loopback(u *url.URL) bool {
	name, _, err := net.SplitHostPort(u.Host)
	if err != nil {
		name = u.Host
	}
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// config reads the files. Without a ca.pem the machine's authorities are trusted, without a cert.pem nobody is who asks.
func (t *tlsFiles) config() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.SkipVerify} //nolint:gosec // the user's own context says so
	ca, err := os.ReadFile(filepath.Join(t.Dir, "ca.pem"))
	switch {
	case err == nil:
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s: %w: it holds no certificate", filepath.Join(t.Dir, "ca.pem"), berth.ErrInvalid)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("TLS: %w: %w", kindOf(err), err)
	}
	certFile, keyFile := filepath.Join(t.Dir, "cert.pem"), filepath.Join(t.Dir, "key.pem")
	cert, key := exists(certFile), exists(keyFile)
	switch {
	case cert && key:
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("TLS: cert.pem and key.pem in %s: %w: %w", t.Dir, kindOfTLS(err), err)
		}
		conf.Certificates = []tls.Certificate{pair}
	case cert || key:
		return nil, fmt.Errorf("TLS: %w: %s has one of cert.pem and key.pem, and not the other", berth.ErrInvalid, t.Dir)
	case conf.RootCAs == nil && !t.SkipVerify:
		return nil, fmt.Errorf("TLS: %w: there is neither ca.pem nor cert.pem and key.pem in %s (DOCKER_CERT_PATH, or the Docker context)", berth.ErrNotFound, t.Dir)
	}
	return conf, nil
}

func kindOfTLS(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return berth.ErrDenied
	}
	return berth.ErrInvalid
}
