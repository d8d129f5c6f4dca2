package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/network"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/scratch"
	"golang.org/x/sys/unix"
)

// Names below a sandbox's directory.
const (
	sandboxesDir  = "sandboxes"
	sandboxFile   = "sandbox.json"
	filesDir      = "files"
	containersDir = "c"
	trashDir      = "trash"  // below runDir
	recordTrash   = ".trash" // below Monitor.state: records that are removed beside the way
)

// record is what is kept of a sandbox on disk.
type record struct {
	Spec    berth.SandboxSpec `json:"spec"`
	Created time.Time         `json:"created"`
	Boot    string            `json:"boot,omitempty"`   // start of the host in which it was made
	Copied  []string          `json:"copied,omitempty"` // volumes whose CopyUp is done
}

// sandbox is the place in which a task's steps run.
type sandbox struct {
	m   *Monitor
	id  string
	dir string

	copying sync.Mutex  // held while volumes are filled; see launch.copyUp
	worn    atomic.Bool // its network is nothing for another sandbox; see launch.leavesNetwork

	mu         sync.Mutex
	rec        record
	area       *scratch.Area
	volumes    []string // directories, as Spec.Volumes
	net        *network.Net
	made       bool // its directory is, by us: what is there else is another's
	filed      bool // its files are made: see mountFiles
	containers map[string]*container
	bound      int  // connections that a bound sandbox ends with
	closing    bool // no further starts
	gone       chan struct{}
	sampler    context.CancelFunc
}

// sandboxDir is the directory of a sandbox's records and small files.
func (m *Monitor) sandboxDir(id string) string { return filepath.Join(m.state, id) }

// scratchDir is the directory of all that a sandbox's containers write.
func (m *Monitor) scratchDir(id string) string { return filepath.Join(m.cfg.Dir, sandboxesDir, id) }

// trash is the directory of what is removed beside the way.
func (m *Monitor) trash() string { return filepath.Join(m.cfg.Dir, runDir, trashDir) }

// find returns an open sandbox.
func (m *Monitor) find(ctx context.Context, id string) (*sandbox, error) {
	m.mu.Lock()
	sb := m.sandboxes[id]
	m.mu.Unlock()
	if sb != nil {
		return sb, nil
	}
	if err := m.openAgain(ctx, id); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if sb := m.sandboxes[id]; sb != nil {
		return sb, nil
	}
	return nil, fmt.Errorf("sandbox %s: %w", id, berth.ErrNotFound)
}

// openSandbox makes the sandbox, or finds the one that was made by the same spec.
func (m *Monitor) openSandbox(ctx context.Context, spec berth.SandboxSpec) (*sandbox, error) {
	if err := berth.CheckID(spec.ID); err != nil {
		return nil, err
	}
	if err := m.openAgain(ctx, spec.ID); err != nil && !errors.Is(err, berth.ErrNotFound) {
		return nil, err
	}
	m.mu.Lock()
	if sb := m.sandboxes[spec.ID]; sb != nil {
		m.mu.Unlock()
		sb.mu.Lock() // until it is made
		defer sb.mu.Unlock()
		if !reflect.DeepEqual(normal(sb.rec.Spec), normal(spec)) {
			return nil, fmt.Errorf("sandbox %s: %w: it is there with another spec", spec.ID, berth.ErrConflict)
		}
		if sb.closing {
			return nil, fmt.Errorf("sandbox %s: %w: it is being closed", spec.ID, berth.ErrConflict)
		}
		return sb, nil
	}
	sb := &sandbox{m: m, id: spec.ID, dir: m.sandboxDir(spec.ID), containers: map[string]*container{}, gone: make(chan struct{})}
	sb.rec = record{Spec: spec, Created: time.Now(), Boot: bootID()}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	m.sandboxes[spec.ID] = sb
	m.mu.Unlock()
	if err := sb.make(ctx); err != nil {
		sb.closing = true
		sb.remove()
		return nil, fmt.Errorf("open sandbox %s: %w", spec.ID, m.saysFull(err))
	}
	return sb, nil
}

// normal makes specs comparable that came different ways.
func normal(s berth.SandboxSpec) berth.SandboxSpec {
	raw, err := json.Marshal(s)
	if err != nil {
		return s
	}
	var out berth.SandboxSpec
	_ = json.Unmarshal(raw, &out)
	return out
}

func (sb *sandbox) make(ctx context.Context) error {
	if err := os.Mkdir(sb.dir, 0o700); err != nil {
		return err
	}
	sb.made = true
	if err := writeNew(filepath.Join(sb.dir, sandboxFile), sb.rec); err != nil { // intent before effect
		return err
	}
	if err := os.Mkdir(filepath.Join(sb.dir, containersDir), 0o755); err != nil {
		return err
	}
	area, err := scratch.Open(ctx, sb.m.scratchDir(sb.id), sb.scratchConfig())
	if err != nil {
		return err
	}
	sb.area = area
	if err := sb.makeVolumes(); err != nil {
		return err
	}
	if err := sb.openNetwork(ctx); err != nil {
		return err
	}
	sb.sample()
	return nil
}

func (sb *sandbox) scratchConfig() scratch.Config {
	cfg := scratch.Config{Limit: sb.rec.Spec.Limits.Disk, Logger: sb.m.log, Spare: sb.m.spares.get}
	if sb.rec.Spec.Loose {
		cfg.Prefer, cfg.Thin = []berth.DiskEnforcement{berth.DiskLoop, berth.DiskSampled}, true
	}
	for i, v := range sb.rec.Spec.Volumes {
		cfg.Volumes = append(cfg.Volumes, scratch.Volume{Name: scratch.VolumeName(i, v.Path), Size: v.Size})
	}
	return cfg
}

// makeVolumes finds the directories of the volumes, and sets their modes.
func (sb *sandbox) makeVolumes() error {
	sb.volumes = make([]string, len(sb.rec.Spec.Volumes))
	for i, v := range sb.rec.Spec.Volumes {
		dir, err := sb.area.Volume(scratch.VolumeName(i, v.Path))
		if err != nil {
			return err
		}
		mode := v.Mode
		if mode == 0 {
			mode = 0o777 | fs.ModeSticky
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
		sb.volumes[i] = dir
	}
	return nil
}

func (sb *sandbox) openNetwork(ctx context.Context) error {
	spec := sb.rec.Spec
	hostname := spec.Hostname
	if hostname == "" {
		hostname = spec.ID
	}
	net, err := sb.m.nets.Setup(ctx, network.Spec{Instance: sb.m.cfg.Instance, ID: spec.ID, Hostname: hostname, Network: spec.Network})
	if err != nil {
		return err
	}
	sb.net = net
	return nil
}

// files are the sandbox's own, by their names in /etc. There is no resolver where there is no network.
func (sb *sandbox) files() map[string][]byte {
	files := map[string][]byte{"hosts": sb.net.Hosts, "hostname": sb.net.Hostname}
	if sb.net.Mode != berth.NetworkNone {
		files["resolv.conf"] = sb.net.ResolvConf
	}
	return files
}

// filesOptions bound what a container can make of the files that it is given: it may write to them.
const filesOptions = "size=1m,nr_inodes=8,mode=755"

// mountFiles makes the files where they can be mounted from, in a small file system in memory: where they would
// lie else, the host's disk or the memory for its own state, nothing limits the container.
func (sb *sandbox) mountFiles() error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.filed {
		return nil
	}
	dir := filepath.Join(sb.dir, filesDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, filesOptions); err != nil {
		return fmt.Errorf("files of the container: %w", err)
	}
	for name, content := range sb.files() {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
		}
	}
	sb.filed = true
	return nil
}

// limitName names a limit of the scratch area as its user knows it.
func (sb *sandbox) limitName(what string) string {
	if of, ok := strings.CutPrefix(what, scratch.FilesOf); ok {
		return scratch.FilesOf + sb.limitName(of)
	}
	for i, v := range sb.rec.Spec.Volumes {
		if what == "volume "+scratch.VolumeName(i, v.Path) {
			return "volume " + v.Path
		}
	}
	return what
}

// sample looks at the disk each second: it ends the containers of a sandbox whose limits nothing else keeps,
// and notices hard limits that are full only for a while.
func (sb *sandbox) sample() {
	if sb.area.Enforcement() == berth.DiskNone {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	sb.sampler = cancel
	sb.m.wg.Go(func() {
		err := sb.area.Sample(ctx, time.Second, func(o scratch.Over) {
			for _, c := range sb.all() {
				o.What = sb.limitName(o.What)
				c.end(berth.OutOfDisk, o.String(), 0)
			}
		})
		if err != nil && ctx.Err() == nil {
			sb.m.log.Error("sample the disk", "sandbox", sb.id, "err", err)
		}
	})
}

func (sb *sandbox) all() []*container {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	out := make([]*container, 0, len(sb.containers))
	for _, c := range sb.containers {
		out = append(out, c)
	}
	return out
}

// save writes the record; sb.mu is held or nobody else knows sb.
func (sb *sandbox) save() error { return writeJSON(filepath.Join(sb.dir, sandboxFile), sb.rec) }

// describe is the sandbox for a client. ErrNotFound: it is being closed, or could not be made.
func (sb *sandbox) describe() (*wire.Sandbox, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closing {
		return nil, fmt.Errorf("sandbox %s: %w: it is being closed", sb.id, berth.ErrNotFound)
	}
	w := &wire.Sandbox{
		Spec: sb.rec.Spec, Enforcement: sb.area.Enforcement(), Volumes: map[string]string{},
		Files: filepath.Join(sb.dir, filesDir),
	}
	for i, v := range sb.rec.Spec.Volumes {
		w.Volumes[v.Path] = sb.volumes[i]
	}
	if sb.net != nil && sb.net.Address.IsValid() {
		w.Address = sb.net.Address.String()
	}
	return w, nil
}

// volume opens the directory of the volume mounted at p.
func (sb *sandbox) volume(p string) (*os.File, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	for i, v := range sb.rec.Spec.Volumes {
		if v.Path == path.Clean(p) && i < len(sb.volumes) { // a sandbox that could not be made has none
			return os.Open(sb.volumes[i])
		}
	}
	return nil, fmt.Errorf("volume %s of sandbox %s: %w", p, sb.id, berth.ErrNotFound)
}

func (sb *sandbox) container(id string) (*container, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if c := sb.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s of sandbox %s: %w", id, sb.id, berth.ErrNotFound)
}

// pending reports whether the monitor must stay for this sandbox although nothing runs in it: its disk is
// mounted here, or it ends with a client that may yet come back.
func (sb *sandbox) pending() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.rec.Spec.Bound || sb.area != nil && sb.area.Enforcement() == berth.DiskLoop
}

// isBound reports whether the sandbox ends with its client.
func (sb *sandbox) isBound() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.rec.Spec.Bound
}

// resumes reports whether a worker goes on with the sandbox's task.
func (sb *sandbox) resumes() bool { return sb.rec.Spec.Labels[LabelResume] == "1" }

// keep has a bound sandbox outlive its client.
func (sb *sandbox) keep() error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closing {
		return fmt.Errorf("keep sandbox %s: %w: it is being closed", sb.id, berth.ErrConflict)
	}
	sb.rec.Spec.Bound = false
	for _, c := range sb.containers {
		select {
		case <-c.started:
			c.unhold()
		default: // its start sees that the sandbox is bound no longer
		}
	}
	return sb.save()
}

// close ends what runs and removes everything of the sandbox.
func (sb *sandbox) close() {
	if !sb.closeIf(func() bool { return true }) {
		<-sb.gone
	}
}

// closeIf closes the sandbox if ok, which is called with sb.mu held. It answers false where it did not, or
// another is closing it.
func (sb *sandbox) closeIf(ok func() bool) bool {
	sb.mu.Lock()
	if sb.closing || !ok() {
		sb.mu.Unlock()
		return false
	}
	sb.closing = true
	sb.mu.Unlock()
	var later []*container
	for _, c := range sb.all() {
		c.end(berth.Stopped, "the sandbox was closed", 0)
		<-c.ended
		if c.pooled() && sb.area.Enforcement() == berth.DiskNone && sb.rec.Spec.CgroupParent == "" {
			later = append(later, c) // nothing that is removed now is mounted anywhere
			continue
		}
		<-c.clean
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.remove(later...)
	return true
}

// remove removes everything but containers that run; sb.mu is held. What later still hold is removed when they
// hold it no more.
func (sb *sandbox) remove(later ...*container) {
	if sb.sampler != nil {
		sb.sampler()
	}
	sb.closeNetwork(later)
	var beside []func() error
	if sb.area != nil {
		remove, err := sb.closeArea(later)
		if err != nil {
			sb.m.log.Error("close scratch", "sandbox", sb.id, "err", err)
		}
		beside = remove
	}
	if sb.made {
		beside = sb.removeRecords(beside)
	}
	if beside != nil {
		sb.m.wg.Go(func() {
			defer sb.m.cleaners.leave()
			for _, remove := range beside {
				if err := remove(); err != nil {
					sb.m.log.Error("remove scratch", "sandbox", sb.id, "err", err)
				}
			}
		})
	}
	sb.m.mu.Lock()
	delete(sb.m.sandboxes, sb.id)
	sb.m.quietFrom = time.Now()
	sb.m.mu.Unlock()
	close(sb.gone)
}

// removeRecords removes the sandbox's own directory, and what it was given to remove; the directory with what else is
// removed beside the way, if there is anything.
func (sb *sandbox) removeRecords(beside []func() error) []func() error {
	for _, p := range sb.rec.Spec.Scratch {
		if err := scratch.Remove(p); err != nil {
			sb.m.log.Error("remove scratch", "sandbox", sb.id, "path", p, "err", err)
		}
	}
	if sb.filed {
		_ = unix.Unmount(filepath.Join(sb.dir, filesDir), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if beside != nil {
		if remove, err := scratch.Discard(sb.dir, filepath.Join(sb.m.state, recordTrash)); err == nil {
			return append(beside, remove)
		}
	}
	if err := scratch.Remove(sb.dir); err != nil {
		sb.m.log.Error("remove sandbox", "sandbox", sb.id, "err", err)
	}
	return beside
}

// closeArea takes the area away. Its files, which on some disks take longer to remove than all else of a short
// container, go to the trash and are removed beside the way, by what it returns; whoever has that leaves m.cleaners. An
// area with limits, or on a full disk, is removed at once, so that what it was lent is free again.
func (sb *sandbox) closeArea(later []*container) (beside []func() error, err error) {
	wait := func() error {
		for _, c := range later {
			<-c.clean
		}
		return nil
	}
	if sb.area.Enforcement() != berth.DiskNone || sb.onFullDisk() || !sb.m.cleaners.enter() {
		_ = wait()
		return nil, sb.area.Close()
	}
	remove, err := sb.area.Discard(sb.m.trash())
	if err != nil { // the run directory is on another disk, say
		sb.m.cleaners.leave()
		_ = wait()
		return nil, sb.area.Close()
	}
	return []func() error{wait, remove}, nil
}

// bind makes the sandbox end with the connection that calls release.
func (sb *sandbox) bind() (release func()) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.bound++
	return func() {
		last := sb.closeIf(func() bool {
			sb.bound--
			return sb.bound == 0 && sb.rec.Spec.Bound
		})
		if last && sb.resumes() {
			sb.m.worker(sb.id)
		}
	}
}

// shutdown ends what runs because the monitor ends, which nobody asked of the task. Records stay.
func (sb *sandbox) shutdown() {
	for _, c := range sb.all() {
		c.end(berth.Preempted, toldToEnd, 0)
		<-c.ended
		<-c.clean
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.sampler != nil {
		sb.sampler()
	}
	if sb.net != nil {
		_ = sb.net.Close()
		sb.net = nil
	}
}

func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := writeFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// writeNew writes a file that is not there yet, by one call: a process that is killed leaves all of it or,
// in between, an empty file, which its readers take for none.
func writeNew(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, raw, 0o600)
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
