package vmtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// The machine says that it lives by this word among the exits.
const (
	beat      = "beat"
	beatEvery = 5 * time.Second
)

const monitorSocket = "monitor"

// stillError: the machine gave no sign of life, while its processor was busy or idle for ever. That is the emulator's
// doing, or the kernel's on it: what merely hangs in the machine leaves the sign of life alone.
type stillError struct {
	after     time.Duration
	registers string // of its processors, as far as the emulator told
}

func (e *stillError) Error() string {
	return fmt.Sprintf("no sign of life for %v; its processors:\n%s", e.after, e.registers)
}

// withLife is a context that ends with a stillError when the file with the machine's signs of life has not changed for
// that long. stop ends it too, and waits for what looks after it.
func withLife(ctx context.Context, dir, status string, limit time.Duration) (living context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		size, since := int64(-1), time.Now()
		for tick := time.Tick(beatEvery / 2); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick:
			}
			if fi, err := os.Stat(status); err == nil && fi.Size() != size {
				size, since = fi.Size(), time.Now()
			} else if time.Since(since) > limit {
				cancel(&stillError{limit, registers(ctx, filepath.Join(dir, monitorSocket))})
				return
			}
		}
	})
	return ctx, func() {
		cancel(context.Canceled)
		watch.Wait()
	}
}

// registers asks the emulator for those of all processors, or says why it did not tell.
func registers(ctx context.Context, monitor string) string {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", monitor)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "info registers -a\n"); err != nil {
		return err.Error()
	}
	said, err := io.ReadAll(c) // up to the deadline: it keeps the connection
	if len(said) == 0 {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(said)) {
		for _, word := range []string{"CPU#", "RIP=", "PC=", "RSP="} {
			if strings.Contains(line, word) {
				lines = append(lines, strings.TrimSpace(line))
				break
			}
		}
	}
	return strings.Join(lines, "\n")
}
