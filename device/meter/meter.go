package meter

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device"
)

// Meter measures the devices of one step. File must be set; it is that of Start.
type Meter struct {
	File   *os.File
	Order  []string                // the UUIDs of the devices
	Gauges map[string]device.Gauge // by UUID; all must be there
	Every  time.Duration           // 0 is a second
	// Patience is how long the last reading may take. 0 is two seconds.
	Patience time.Duration
	// End is closed when the process has ended, as EndOf says; nil has Run ask for it.
	End <-chan struct{}
}

// state is what the file holds.
type state struct {
	Over bool   `json:"over"` // the step has ended, and nothing is added any more
	GPUs []sums `json:"gpus"`

	cut bool // who measured was killed
}

// Run measures until the process pid has ended. It goes on with what a process before has measured, which was killed.
// After it has returned, a reading that has not been answered may still be waited for: the process should end.
func (m *Meter) Run(pid int) error {
	st := m.begin()
	if st.Over {
		return nil
	}
	end := m.End
	if end == nil {
		var err error
		if end, err = EndOf(pid); err != nil {
			return err
		}
	}
	asked, answers := make(chan struct{}, 1), make(chan map[string]device.Reading, 1)
	go func() { // a driver that hangs holds it until this process ends
		for range asked {
			got := map[string]device.Reading{}
			for uuid, g := range m.Gauges {
				got[uuid] = g.Read()
			}
			answers <- got
		}
	}()
	defer close(asked)
	return m.loop(st, end, asked, answers)
}

// loop asks for readings, each a while after the one before was answered, and once more at the end.
func (m *Meter) loop(st *state, end <-chan struct{}, asked chan<- struct{}, answers <-chan map[string]device.Reading) error {
	var late <-chan time.Time // nil while the step runs
	last, waiting := time.Now(), false
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if !waiting {
				asked <- struct{}{}
				waiting = true
			}
		case got := <-answers:
			now := time.Now()
			for i := range st.GPUs {
				s := &st.GPUs[i]
				s.add(got[s.UUID], now.Sub(last), late != nil)
			}
			last, waiting = now, false
			st.Over = late != nil
			if err := m.write(st); err != nil || st.Over {
				return err
			}
			next.Reset(or(m.Every, time.Second))
		case <-end:
			end = nil
			late = time.After(or(m.Patience, 2*time.Second))
			next.Reset(0)
		case <-late:
			st.Over = true
			return m.write(st)
		}
	}
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

func (m *Meter) begin() *state {
	st, err := read(m.File)
	if err == nil && len(st.GPUs) == len(m.Order) {
		return st
	}
	st = &state{}
	for _, uuid := range m.Order {
		st.GPUs = append(st.GPUs, sums{UUID: uuid, Lacks: m.Gauges[uuid].Lacks()})
	}
	return st
}

// EndOf returns a channel that is closed when a process has ended.
func EndOf(pid int) (<-chan struct{}, error) {
	end := make(chan struct{})
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		close(end)
		return end, nil
	} else if err != nil {
		return nil, fmt.Errorf("measure devices: process %d: %w", pid, err)
	}
	go func() {
		defer close(end)
		defer func() { _ = unix.Close(fd) }()
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return end, nil
}

// blank: what is written replaces what was there in one call, so it does not become shorter.
const blank = 1024

func (m *Meter) write(st *state) error {
	data, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("measure devices: %w", err)
	}
	for len(data)%blank != 0 {
		data = append(data, ' ')
	}
	if _, err = m.File.WriteAt(data, 0); err != nil {
		return fmt.Errorf("measure devices: %w", err)
	}
	return m.File.Truncate(int64(len(data)))
}

func read(f *os.File) (*state, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, err
	}
	st := &state{}
	return st, json.Unmarshal(data, st)
}
