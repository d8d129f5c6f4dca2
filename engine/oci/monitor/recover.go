package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
)

// recover finds the sandboxes of an earlier monitor: what ran in them then was ended with it and is Lost.
func (m *Monitor) recover(ctx context.Context) error {
	parents, err := recordedParents(m.state)
	if err != nil {
		return err
	}
	if err := m.cgroups.RemoveAll(ctx, m.cfg.Instance, parents...); err != nil {
		m.log.Error("remove cgroups of an earlier monitor", "err", err)
	}
	if gone, err := m.nets.Recover(ctx, m.cfg.Instance); err != nil {
		m.log.Error("remove networks of an earlier monitor", "err", err)
	} else if len(gone) > 0 {
		m.log.Info("removed networks of an earlier monitor", "what", gone)
	}
	return m.reopenAll(ctx)
}

// reopenAll opens the sandboxes that have records, and removes what has none.
func (m *Monitor) reopenAll(ctx context.Context) error {
	entries, err := os.ReadDir(m.state)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == skeletonsDir || e.Name() == recordTrash {
			continue
		}
		if err := m.reopen(ctx, e.Name()); err != nil {
			m.log.Error("recover sandbox", "sandbox", e.Name(), "err", err)
			m.unopened[e.Name()] = err
		}
	}
	return m.sweepScratch(ctx)
}

// sweepScratch removes what containers wrote whose records are gone: of an earlier boot, or cut off. What has
// records stays, also where it could not be opened: the next try may find out why.
func (m *Monitor) sweepScratch(ctx context.Context) error {
	for _, trash := range []string{m.trash(), filepath.Join(m.state, recordTrash)} {
		if err := scratch.Sweep(ctx, trash); err != nil {
			m.log.Error("remove what an earlier monitor discarded", "err", err)
		}
	}
	root := filepath.Join(m.cfg.Dir, sandboxesDir)
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if m.sandboxes[e.Name()] != nil || m.unopened[e.Name()] != nil {
			continue
		}
		m.removeScratch(ctx, filepath.Join(root, e.Name()))
	}
	return nil
}

// removeScratch removes what the containers of a sandbox wrote that is not open.
func (m *Monitor) removeScratch(ctx context.Context, dir string) {
	if area, err := scratch.Reopen(ctx, dir, m.log); err == nil {
		err = area.Close()
		if err == nil {
			return
		}
		m.log.Error("remove scratch of an earlier monitor", "dir", dir, "err", err)
	}
	if err := scratch.Remove(dir); err != nil {
		m.log.Error("remove scratch of an earlier monitor", "dir", dir, "err", err)
	}
}

// openAgain tries once more to open a sandbox of an earlier monitor that could not be opened. ErrUnavailable if
// it cannot be still, ErrNotFound if there is none.
func (m *Monitor) openAgain(ctx context.Context, id string) error {
	m.opening.Lock()
	defer m.opening.Unlock()
	m.mu.Lock()
	_, is := m.unopened[id]
	there := m.sandboxes[id] != nil
	m.mu.Unlock()
	switch {
	case there:
		return nil
	case !is:
		return fmt.Errorf("sandbox %s: %w", id, berth.ErrNotFound)
	}
	err := m.reopen(ctx, id)
	m.mu.Lock()
	sb := m.sandboxes[id]
	if err == nil {
		delete(m.unopened, id)
	} else {
		m.unopened[id] = err
	}
	m.mu.Unlock()
	switch {
	case err != nil:
		return fmt.Errorf("sandbox %s: %w: it is of an earlier monitor and cannot be opened again; its files stay until it is removed: %w", id, berth.ErrUnavailable, err)
	case sb == nil:
		return fmt.Errorf("sandbox %s: %w", id, berth.ErrNotFound) // there was nothing of it
	}
	m.goOn(sb)
	return nil
}

// recorded is the record of a sandbox. What cannot be read names nothing but the sandbox.
func (m *Monitor) recorded(id string) (rec record) {
	if err := readJSON(filepath.Join(m.sandboxDir(id), sandboxFile), &rec); err != nil {
		return record{Spec: berth.SandboxSpec{ID: id}}
	}
	return rec
}

// drop removes everything of a sandbox that could not be opened: its owner does not want it any more.
func (m *Monitor) drop(ctx context.Context, id string) error {
	m.opening.Lock()
	defer m.opening.Unlock()
	m.mu.Lock()
	_, is := m.unopened[id]
	m.mu.Unlock()
	if !is {
		return nil
	}
	rec := m.recorded(id)
	m.removeScratch(ctx, m.scratchDir(id))
	var errs []error
	for _, p := range append(rec.Spec.Scratch, m.sandboxDir(id)) {
		errs = append(errs, scratch.Remove(p))
	}
	m.mu.Lock()
	delete(m.unopened, id)
	m.mu.Unlock()
	return errors.Join(errs...)
}

// recordedParents are the cgroups below which sandboxes asked to be.
func recordedParents(root string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(root, "*", sandboxFile))
	if err != nil {
		return nil, err
	}
	var parents []string
	for _, f := range files {
		var rec record
		if readJSON(f, &rec) == nil && rec.Spec.CgroupParent != "" {
			parents = append(parents, rec.Spec.CgroupParent)
		}
	}
	return parents, nil
}

func (m *Monitor) reopen(ctx context.Context, id string) error {
	sb := &sandbox{m: m, id: id, dir: m.sandboxDir(id), containers: map[string]*container{}, gone: make(chan struct{}), made: true}
	if err := readJSON(filepath.Join(sb.dir, sandboxFile), &sb.rec); unwritten(err) {
		return scratch.Remove(sb.dir) // it was cut off before its intent was recorded
	} else if err != nil {
		return err
	}
	var err error
	sb.area, err = scratch.Reopen(ctx, m.scratchDir(id), m.log)
	if errors.Is(err, berth.ErrNotFound) {
		// Nothing ever ran in it, or it was being closed: the area comes after the record, and goes before it.
		return scratch.Remove(sb.dir)
	}
	if err != nil {
		return err
	}
	if err := sb.makeVolumes(); errors.Is(err, berth.ErrNotFound) && sb.rec.Boot != "" && sb.rec.Boot != bootID() {
		// What lay in file systems of their own has not outlived the host's last start.
		return errors.Join(sb.area.Close(), scratch.Remove(sb.dir))
	} else if err != nil {
		return err
	}
	if err := sb.recoverContainers(); err != nil {
		return err
	}
	m.mu.Lock()
	m.sandboxes[id] = sb
	m.mu.Unlock()
	sb.sample()
	if sb.rec.Spec.Bound { // its client has a moment to come back
		m.wg.Go(func() {
			select {
			case <-ctx.Done():
			case <-time.After(rebindTime):
				if sb.closeIf(func() bool { return sb.bound == 0 }) && sb.resumes() {
					m.worker(id)
				}
			}
		})
	}
	return nil
}

// goOn has a worker go on with the task of a recovered sandbox that is adrift.
func (m *Monitor) goOn(sb *sandbox) {
	if sb.adrift() {
		m.worker(sb.id)
	}
}

// adrift reports whether what ran in a recovered sandbox is lost or has just ended, and nobody comes for it: whoever
// started this monitor may have done so for another task, and while a monitor is there nobody looks for tasks without a
// driver. Not only what this monitor found to be lost counts: the one before may have been killed before it started a
// worker, or with it.
func (sb *sandbox) adrift() bool {
	came := func(c *container) bool {
		x := c.result()
		return x.Reason == berth.Lost || time.Since(x.Ended) < justEnded
	}
	return sb.resumes() && !sb.isBound() && slices.ContainsFunc(sb.all(), came)
}

// justEnded is how long after a container's end a monitor that is started anew has a worker look at its task: not of each
// sandbox that is kept, for ever.
const justEnded = 5 * time.Minute

// rebindTime is how long a bound sandbox waits for its client after the monitor was started anew.
const rebindTime = 2 * time.Second

// unwritten says of an error of readJSON that the file was never written, or cut off in that.
func unwritten(err error) bool {
	_, other := errors.AsType[*fs.PathError](err)
	return err != nil && (errors.Is(err, fs.ErrNotExist) || !other)
}

// bootID names this start of the host, which this process does not outlive; "" where it is unknown.
var bootID = sync.OnceValue(func() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
})
