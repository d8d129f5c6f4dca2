package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/companion"
	"golang.org/x/sys/unix"
)

// keeperClient is an engine's connection to the keeper of its data directory.
type keeperClient struct {
	e  *Engine
	mu sync.Mutex
	c  *net.UnixConn
	r  *bufio.Reader
	// ids are the sandboxes that were named: of a new keeper they are named again.
	ids  map[string]bool
	shut bool
}

const keeperTries = 8

// tell names a sandbox to the keeper, which is started where none runs; "" names none. It returns the keeper's
// process id.
func (kc *keeperClient) tell(ctx context.Context, id string) (int, error) {
	kc.mu.Lock()
	defer kc.mu.Unlock()
	if id != "" {
		if kc.ids == nil {
			kc.ids = map[string]bool{}
		}
		kc.ids[id] = true
	}
	var err error
	for try := range keeperTries {
		var pid int
		if pid, err = kc.ask(id); err == nil {
			return pid, nil
		}
		kc.drop()
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if try > 0 || errors.Is(err, errNoKeeper) {
			if serr := kc.e.spawnKeeper(ctx); errors.Is(serr, companion.ErrKilled) { // no fault of its own: the next one may live
				err = serr
			} else if serr != nil {
				return 0, fmt.Errorf("keeper: %w: %w", berth.ErrUnavailable, serr)
			}
			time.Sleep(time.Duration(try) * 5 * time.Millisecond) // one that ends still holds the lock
		}
	}
	return 0, fmt.Errorf("keeper: %w: it does not answer: %w", berth.ErrUnavailable, err)
}

var errNoKeeper = errors.New("no keeper runs")

// ask needs mu.
func (kc *keeperClient) ask(id string) (int, error) {
	if kc.c == nil {
		c, err := kc.e.dialKeeper()
		if err != nil {
			return 0, fmt.Errorf("%w: %w", errNoKeeper, err)
		}
		kc.c, kc.r = c, bufio.NewReader(c)
		for other := range kc.ids {
			if other != id {
				if _, err := kc.line(other); err != nil {
					return 0, err
				}
			}
		}
	}
	return kc.line(id)
}

func (kc *keeperClient) line(id string) (int, error) {
	_ = kc.c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(kc.c, id+"\n"); err != nil {
		return 0, err
	}
	answer, err := kc.r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(answer))
}

func (kc *keeperClient) drop() {
	if kc.c != nil {
		_ = kc.c.Close()
		kc.c = nil
	}
}

// forget: the sandbox was closed.
func (kc *keeperClient) forget(id string) {
	kc.mu.Lock()
	defer kc.mu.Unlock()
	delete(kc.ids, id)
}

func (kc *keeperClient) close() {
	kc.mu.Lock()
	defer kc.mu.Unlock()
	kc.shut = true
	kc.drop()
}

// stay looks after the keeper as long as there are bound sandboxes: should it be killed, another one is started.
func (kc *keeperClient) stay(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		kc.mu.Lock()
		gone := !kc.shut && len(kc.ids) > 0 && (kc.c == nil || peerGone(kc.c))
		kc.mu.Unlock()
		if !gone {
			continue
		}
		if _, err := kc.tell(ctx, ""); err != nil && ctx.Err() == nil {
			kc.e.cfg.Logger.Warn("no keeper", "err", err)
		}
	}
}

// peerGone reports whether the other end has closed the connection, on which nothing is due.
func peerGone(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && !errors.Is(err, unix.EAGAIN)
	})
	return gone || err != nil
}

// Watched reports whether a keeper watches over a data directory: then parked tasks need nobody else.
func Watched(dir string) bool {
	c, err := (&Engine{cfg: Config{Dir: dir}}).dialKeeper()
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func (e *Engine) dialKeeper() (*net.UnixConn, error) {
	return companion.Dial(filepath.Join(e.cfg.Dir, runDir), keeperSock)
}

// spawnKeeper starts a keeper and waits until it can be connected to. That another one runs already is no error.
func (e *Engine) spawnKeeper(ctx context.Context) error {
	cmd, err := e.keeperCommand()
	if err != nil {
		return err
	}
	return companion.Start(ctx, cmd, filepath.Join(e.cfg.Dir, runDir, keeperLog))
}

func (e *Engine) keeperCommand() (*exec.Cmd, error) {
	argv := e.cfg.Keeper
	if len(argv) == 0 {
		argv = []string{"/proc/self/exe"}
	}
	raw, err := json.Marshal(keeperConfig{
		Host: e.at.Host, Owner: e.owner, Watchdog: e.cfg.Watchdog, CallMax: e.cfg.CallMax, Streams: e.cfg.StreamsMax, LogKeep: e.cfg.LogKeep, Worker: e.cfg.Worker, Idle: e.cfg.Idle,
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], append(argv[1:len(argv):len(argv)], "--data-dir", e.cfg.Dir, string(raw))...) //nolint:noctx // it outlives us on purpose
	cmd.Args[0] = KeeperName
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// Monitor is the process that sees the sandbox's containers to their end when nobody else waits for them. What was lent
// to a task can be left to it.
func (s *Sandbox) Monitor(ctx context.Context) (pid int, err error) {
	if !s.kept() {
		return 0, fmt.Errorf("sandbox %s: %w: no keeper looks after it", s.spec.ID, berth.ErrUnsupported)
	}
	return s.e.keeper.tell(ctx, s.spec.ID)
}

// kept reports whether the keeper has to do with the sandbox.
func (s *Sandbox) kept() bool { return s.spec.Bound || s.spec.Labels[LabelResume] == "1" }
