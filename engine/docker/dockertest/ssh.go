package dockertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// SSH is a server of ssh on loopback, and how to be let in. It has a home directory of its own in a mount namespace, so
// that nothing of the machine's own ssh is changed.
type SSH struct {
	// Addr is what comes after ssh://, "root@127.0.0.1:2222".
	Addr string
	// Bin is a directory for the front of PATH: its ssh is the real one, with the test's keys in place of the user's.
	Bin string

	cmd  *exec.Cmd
	done chan struct{}
}

// StartSSH starts the server and waits until it takes connections. It needs root, and Debian's dropbear-bin and
// openssh-client.
func StartSSH(ctx context.Context, dir string) (*SSH, error) {
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	s := &SSH{Bin: filepath.Join(dir, "bin"), done: make(chan struct{})}
	if err := os.MkdirAll(s.Bin, 0o700); err != nil {
		return nil, err
	}
	host, key := filepath.Join(dir, "host"), filepath.Join(dir, "key")
	for _, args := range [][]string{{"dropbearkey", "-t", "ed25519", "-f", host}, {"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s.Addr = me.Username + "@" + port
	// Clients know the host before they first come and write nothing: one may end after its test's directory is removed.
	known, err := knownHost(ctx, host, port)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf("Host *\n\tIdentityFile %s\n\tIdentitiesOnly yes\n\tUserKnownHostsFile %s\n\tGlobalKnownHostsFile /dev/null\n\tStrictHostKeyChecking yes\n\tUpdateHostKeys no\n\tLogLevel ERROR\n", key, filepath.Join(dir, "known_hosts"))
	real, err := exec.LookPath("ssh")
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600),
		os.WriteFile(filepath.Join(dir, "known_hosts"), []byte(known), 0o600),
		os.WriteFile(filepath.Join(s.Bin, "ssh"), fmt.Appendf(nil, "#!/bin/sh\nexec %s -F %s \"$@\"\n", real, filepath.Join(dir, "config")), 0o700))
	if err != nil {
		return nil, err
	}
	// The key is read before the home directory, in which it may lie, is another.
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		return nil, err
	}
	script := `mount -t tmpfs -o mode=700 none "$1" && mkdir -m 700 "$1/.ssh" && printf '%s' "$2" >"$1/.ssh/authorized_keys" && chmod 600 "$1/.ssh/authorized_keys" && exec dropbear -F -E -s -m -r "$3" -P "" -p "$4"`
	s.cmd = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", me.HomeDir, string(pub), host, port) //nolint:noctx // it lives until Close
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process
		_ = s.cmd.Wait()
		close(s.done)
	}()
	for end := time.Now().Add(startMax); time.Now().Before(end); time.Sleep(poll) {
		var dial net.Dialer
		if c, err := dial.DialContext(ctx, "tcp", port); err == nil {
			_ = c.Close()
			return s, nil
		}
		select {
		case <-s.done:
			said, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("dropbear (Debian's dropbear-bin) ended: %s", said)
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), s.Close())
		default:
		}
	}
	return nil, errors.Join(errors.New("dropbear takes no connections"), s.Close())
}

// Close ends the server, and its connections.
func (s *SSH) Close() error {
	err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.done
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// freePort is an address on loopback that nobody listens on.
func freePort() (string, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// knownHost is the line of a known_hosts file for the server with the dropbear key of that file at host:port.
func knownHost(ctx context.Context, key, at string) (string, error) {
	out, err := exec.CommandContext(ctx, "dropbearkey", "-y", "-f", key).Output()
	if err != nil {
		return "", fmt.Errorf("dropbearkey -y: %w", err)
	}
	name, port, err := net.SplitHostPort(at)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "ssh-ed25519 ") {
			return fmt.Sprintf("[%s]:%s %s", name, port, line), nil
		}
	}
	return "", fmt.Errorf("dropbearkey -y says no public key: %q", out)
}
