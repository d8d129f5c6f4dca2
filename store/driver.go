package store

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// Driver is the process that brings a task forward. The zero value is nobody.
type Driver struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot
	Boot  string `json:"boot,omitempty"`  // the kernel's boot id
}

// Self is this process as a driver.
func Self() (Driver, error) {
	boot, err := bootID()
	if err != nil {
		return Driver{}, fmt.Errorf("identify this process: %w", err)
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return Driver{}, fmt.Errorf("identify this process: %w", err)
	}
	return Driver{PID: os.Getpid(), Start: start, Boot: boot}, nil
}

func (d Driver) alive() bool {
	if d.PID <= 0 {
		return false
	}
	boot, err := bootID()
	if err != nil || boot != d.Boot {
		return false
	}
	start, err := startTime(d.PID)
	return err == nil && start == d.Start
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// startTime is when a process that runs was started; a zombie does not run.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]) // the name before may hold anything
	if len(f) < 20 || f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0, fmt.Errorf("process %d does not run", pid)
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// Claim makes d the one driver of a task. Claiming what d drives already changes nothing.
//
// Errors: berth.ErrNotFound; berth.ErrConflict while another driver is alive.
func (s *Store) Claim(ctx context.Context, task string, d Driver) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		var has Driver
		err := s.row(ctx, tx, "SELECT driver_pid, driver_start, driver_boot FROM tasks WHERE id = ?", task).
			Scan(&has.PID, &has.Start, &has.Boot)
		if err != nil {
			return noRows(err)
		}
		if has == d {
			return nil
		}
		if s.alive(has) {
			return fmt.Errorf("%w: process %d drives it", berth.ErrConflict, has.PID)
		}
		return s.exec(ctx, tx, "UPDATE tasks SET driver_pid = ?, driver_start = ?, driver_boot = ? WHERE id = ?", d.PID, d.Start, d.Boot, task)
	})
	if err != nil {
		return fmt.Errorf("claim task %s: %w", task, err)
	}
	return nil
}

// Yield ends the claim of d; no error if d has none.
func (s *Store) Yield(ctx context.Context, task string, d Driver) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		return s.exec(ctx, tx, `UPDATE tasks SET driver_pid = 0, driver_start = 0, driver_boot = ''
			WHERE id = ? AND driver_pid = ? AND driver_start = ? AND driver_boot = ?`, task, d.PID, d.Start, d.Boot)
	})
	if err != nil {
		return fmt.Errorf("yield task %s: %w", task, err)
	}
	return nil
}

// Stale lists, oldest first, the open tasks that nobody drives: those whose driver is dead, and those whose
// driver yielded (Record.Driver is zero). A task is open until it is final and its sandbox is gone.
func (s *Store) Stale(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		last := int64(0)
		for {
			page, err := s.records(ctx, "tasks", "WHERE open = 1 AND tasks.n > ? ORDER BY tasks.n LIMIT ?", last, pageSize)
			if err != nil {
				yield(Record{}, fmt.Errorf("list stale tasks: %w", err))
				return
			}
			for _, r := range page {
				last = r.n
				if !s.alive(r.Driver) && !yield(r, nil) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}
