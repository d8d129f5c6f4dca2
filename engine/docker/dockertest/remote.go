package dockertest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Remote is how a daemon is reached that is on another machine, as far as it can be on one: it has a mount namespace of its
// own, in which the temporary directory is empty, so that it sees none of the tests' files. Its own directory is elsewhere.
type Remote struct {
	// Addr is where it listens, "127.0.0.1:12376".
	Addr string
	// Certs is a directory with ca.pem, cert.pem and key.pem of who may ask it.
	Certs string
}

// startRemote makes certificates, and answers the arguments of a daemon that listens with them.
func (d *Daemon) startRemote() ([]string, error) {
	if d.remote.Addr == "" {
		var err error
		if d.remote.Addr, err = freePort(); err != nil {
			return nil, err
		}
		d.remote.Certs = d.path("certs")
		if err := MakeCerts(d.remote.Certs, d.path("server")); err != nil {
			return nil, err
		}
	}
	return []string{
		"--host", "tcp://" + d.remote.Addr, "--tlsverify", "--tlscacert", d.path("server/ca.pem"),
		"--tlscert", d.path("server/cert.pem"), "--tlskey", d.path("server/key.pem"),
	}, nil
}

// Remote is how to reach a daemon that was started with Options.Remote.
func (d *Daemon) Remote() Remote { return d.remote }

// Env is what has a client of Docker talk to it.
func (r Remote) Env() []string {
	return []string{"DOCKER_HOST=tcp://" + r.Addr, "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=" + r.Certs}
}

func (r Remote) answers(ctx context.Context) bool {
	pair, err := tls.LoadX509KeyPair(filepath.Join(r.Certs, "cert.pem"), filepath.Join(r.Certs, "key.pem"))
	if err != nil {
		return false
	}
	ca, err := os.ReadFile(filepath.Join(r.Certs, "ca.pem"))
	if err != nil {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	dial := tls.Dialer{Config: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}}
	c, err := dial.DialContext(ctx, "tcp", r.Addr)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, "GET /_ping HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	raw, _ := io.ReadAll(c)
	return bytes.Contains(raw, []byte(" 200 "))
}

// MakeCerts makes an authority, and by it a server's and a client's certificate, each in a directory.
func MakeCerts(client, server string) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dockertest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caRaw, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	one := func(dir string, serial int64, usage x509.ExtKeyUsage) error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: filepath.Base(dir)}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}, ca, &key.PublicKey, caKey)
		if err != nil {
			return err
		}
		keyRaw, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		return errors.Join(os.MkdirAll(dir, 0o700),
			writePEM(filepath.Join(dir, "ca.pem"), "CERTIFICATE", caRaw),
			writePEM(filepath.Join(dir, "cert.pem"), "CERTIFICATE", raw),
			writePEM(filepath.Join(dir, "key.pem"), "PRIVATE KEY", keyRaw))
	}
	return errors.Join(one(client, 2, x509.ExtKeyUsageClientAuth), one(server, 3, x509.ExtKeyUsageServerAuth))
}

func writePEM(file, kind string, raw []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600)
}
