package monitor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
	"golang.org/x/sys/unix"
)

// stateDirs are where root's records may lie, the first that is in memory and root's: they mean nothing after
// the next boot, and to make and remove files is what a short container costs most on some disks.
var stateDirs = []string{"/run/berth/state", "/dev/shm/berth-state"}

// placeFile, in the data directory's runDir, says where the records lie, so that no later monitor looks elsewhere
// because a file system was mounted or unmounted meanwhile.
const placeFile = "state.json"

// place is the content of placeFile.
type place struct {
	Dir  string `json:"dir"`
	Boot string `json:"boot"` // of the host, in which it was chosen
}

// openState finds the place of the records, and makes it.
func (m *Monitor) openState() error {
	file := filepath.Join(m.cfg.Dir, runDir, placeFile)
	var was place
	if err := readJSON(file, &was); err != nil && !unwritten(err) {
		return fmt.Errorf("records of sandboxes: %w", err)
	}
	var err error
	if m.state, err = m.choosePlace(was); err != nil {
		return err
	}
	if err := os.MkdirAll(m.state, 0o700); err != nil {
		return fmt.Errorf("records of sandboxes: %w", err)
	}
	if now := (place{m.state, bootID()}); now != was {
		if err := writeJSON(file, now); err != nil { // on a full disk, say: where records are they are found all the same
			m.log.Error("note where the records of sandboxes lie", "err", err)
		}
	}
	m.skeletons = &skeletons{dir: filepath.Join(m.state, skeletonsDir), rootless: m.rootless, m: map[string]skeleton{}}
	if err := scratch.Remove(m.skeletons.dir); err != nil { // an earlier monitor's, which nothing uses now
		return err
	}
	areas := filepath.Join(m.cfg.Dir, sandboxesDir)
	if err := errors.Join(os.Mkdir(m.skeletons.dir, 0o711), os.MkdirAll(areas, 0o700)); err != nil {
		return err
	}
	scratch.Spread(areas)
	if m.spares, err = newSpares(filepath.Join(m.cfg.Dir, runDir, spareDir), areas); err != nil { // it works without
		m.log.Error("remove an earlier monitor's spare directories", "err", err)
	}
	return nil
}

// choosePlace finds the place of the records: where they are, else in memory where that outlives us, else on the
// disk. Of places that have records, that which was noted in this boot comes first. ErrDenied if that cannot be
// trusted any more.
func (m *Monitor) choosePlace(was place) (string, error) {
	disk := filepath.Join(m.cfg.Dir, runDir, "state")
	all := []string{}
	if !m.rootless {
		for _, dir := range m.places {
			if inMemory(dir) {
				all = append(all, filepath.Join(dir, m.cfg.Instance))
			}
		}
	}
	all = append(all, disk)
	if _, err := os.Lstat(was.Dir); err == nil && was.Boot == bootID() {
		switch {
		case slices.Contains(all, was.Dir):
			return was.Dir, nil
		case !m.rootless && slices.Contains(m.places, filepath.Dir(was.Dir)):
			return "", fmt.Errorf("records of sandboxes: %w: they lie in %s, and that is no longer a directory in memory that only root can write to; make it so again, or remove %s and lose them",
				berth.ErrDenied, was.Dir, filepath.Join(m.cfg.Dir, runDir, placeFile))
		}
	}
	for _, dir := range all {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			return dir, nil
		}
	}
	return all[0], nil
}

// inMemory makes dir, if need be, and reports whether it is a directory of root's in memory.
func inMemory(dir string) bool {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return false
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(dir, &fs) != nil || unix.Lstat(dir, &st) != nil {
		return false
	}
	return fs.Type == unix.TMPFS_MAGIC && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Uid == 0 && st.Mode&0o022 == 0
}
