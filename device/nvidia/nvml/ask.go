package nvml

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// DefaultTimeout is how long the library may take. Where nothing keeps the driver awake it wakes each GPU, which
// takes seconds.
const DefaultTimeout = 20 * time.Second

// Asker asks the library of one host.
type Asker struct {
	Host *device.Host
	// Command starts a process that calls Main. Without one, or in a build without cgo, only recorded hosts
	// have an answer.
	Command []string
	Timeout time.Duration // 0 is DefaultTimeout
}

// Facts returns what the library says; nil if there is no library to ask. The error is of the kind
// berth.ErrUnavailable if it does not answer in time, or fails.
func (a Asker) Facts(ctx context.Context) (*Facts, error) {
	if a.Host.Root() != "/" {
		return Read(a.Host)
	}
	if !Built || len(a.Command) == 0 {
		return nil, nil //nolint:nilnil // nobody can be asked
	}
	limit := a.Timeout
	if limit == 0 {
		limit = DefaultTimeout
	}
	out, err := runLimited(ctx, a.Command, limit)
	if err != nil {
		return nil, fmt.Errorf("NVIDIA's management library: %w: %w", berth.ErrUnavailable, err)
	}
	var said answer
	if err := json.Unmarshal(out, &said); err != nil {
		return nil, fmt.Errorf("NVIDIA's management library: %w: %w", berth.ErrUnavailable, err)
	}
	if said.Error != "" {
		return nil, fmt.Errorf("NVIDIA's management library: %w: %s", berth.ErrUnavailable, said.Error)
	}
	return said.Facts, nil
}

// More adds what the library says to devices, for nvidia.Driver.
func (a Asker) More(ctx context.Context, devices []device.Device) ([]device.Device, error) {
	facts, err := a.Facts(ctx)
	if err != nil || facts == nil {
		return devices, err
	}
	return facts.Add(devices), nil
}

// answer is what the process that asks prints: facts, or why there are none. Neither is that there is no library.
type answer struct {
	Facts *Facts `json:"facts,omitempty"`
	Error string `json:"error,omitempty"`
}

// runLimited runs a command and returns what it prints. One that has not ended in time is killed and left
// behind: a call into a driver that hangs ends with the machine.
func runLimited(ctx context.Context, command []string, limit time.Duration) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // its end must not be waited for
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			last := strings.TrimSpace(errs.String())
			return nil, fmt.Errorf("it ended with %w: %s", exit, last[strings.LastIndexByte(last, '\n')+1:])
		}
		return out.Bytes(), err
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		return nil, context.Cause(ctx)
	case <-timer.C:
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("the driver has not answered for %s; look for its messages with: dmesg", berth.FormatDuration(limit))
	}
}
