package meter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// FD is the descriptor on which the process that Start starts has the Meter's file.
const FD = 3

// Start starts a command that runs a Meter, and does not wait for it. It does nothing where one runs for the same file.
// The file is made; it is locked as long as somebody measures.
func Start(file string, command, env []string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("measure devices: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return fmt.Errorf("measure devices: %w", err)
	}
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx // it outlives this process on purpose
	cmd.Env, cmd.Dir, cmd.ExtraFiles = env, "/", []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("measure devices: %w", err)
	}
	go func() { _ = cmd.Wait() }() // only reaps: it ends with the step
	return nil
}

// Read returns what was measured of devices, in the order of uuids. It waits, for patience at most, until who measures has
// read all gauges a last time. What was not measured it tells.
func Read(ctx context.Context, file string, uuids []string, patience time.Duration) []berth.GPUUse {
	st, err := last(ctx, file, patience)
	var uses []berth.GPUUse
	for _, uuid := range uuids {
		u := berth.GPUUse{UUID: uuid}
		for i := range st.GPUs {
			if st.GPUs[i].UUID == uuid {
				u = st.GPUs[i].use()
			}
		}
		if err != nil {
			u.Unknown = "it was not measured: " + err.Error()
		} else if st.cut && u.Unknown == "" {
			u.Unknown = "who measured it was killed: what is known is of the time until then"
		} else if u.PeakMemory == nil && u.Busy == nil && u.Energy == nil && u.Unknown == "" {
			u.Unknown = "the driver did not say before the step ended"
		}
		uses = append(uses, u)
	}
	return uses
}

// last returns the last state.
func last(ctx context.Context, file string, patience time.Duration) (*state, error) {
	end := time.NewTimer(patience)
	defer end.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		st, over, err := look(file)
		if err != nil || over {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, nil
		case <-end.C:
			return st, nil
		case <-time.After(pause):
		}
	}
}

// look returns the state, and whether it is the last.
func look(file string) (st *state, over bool, err error) {
	st = &state{}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return st, true, errors.New("nobody began to")
	} else if err != nil {
		return st, true, err
	}
	defer func() { _ = f.Close() }()
	// First the lock: who had it may have written last before it was freed.
	alone := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
	got, err := read(f)
	if err != nil { // nothing is in it yet, or what is there is not whole
		if alone {
			return st, true, errors.New("the step ended before it could be")
		}
		return st, false, nil
	}
	got.cut = alone && !got.Over
	return got, alone || got.Over, nil
}
