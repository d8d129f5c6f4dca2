package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/scratch"
)

// mayWriteSpecs reports whether this process writes specs that the daemon reads: as root, since they are read by the whole host.
func mayWriteSpecs(host *hostInfo) bool { return len(host.cdiDirs) > 0 && hasSpecs(host) }

// hasSpecs reports whether specs of sandboxes may lie on this machine: the daemon may have read them before, and not now.
func hasSpecs(host *hostInfo) bool { return !host.remote && !host.rootless && os.Geteuid() == 0 }

// ownSpec has a daemon that injects CDI devices bring what its API has no words for, as hooks: by a spec of the sandbox's own, which has
// just what was lent, and goes with the sandbox. It lies in the directory that counts the most, which is of this boot alone on
// most hosts. Environment and groups are not in it: they are said by the API, and old readers know no groups.
func (s *Sandbox) ownSpec(host *hostInfo, vendor string, set *grant.Set) (names []string, err error) {
	edits := cdi.Append(nil, set.Edits)
	edits.Env, edits.AdditionalGIDs = nil, nil
	name := cdi.LentName(s.e.owner, s.spec.ID, vendor)
	doc := &specs.Spec{Kind: cdi.LentVendor + "/gpu", Devices: []specs.Device{{Name: name, ContainerEdits: *edits}}}
	if err = s.writeSpec(host.cdiDirs[len(host.cdiDirs)-1], name, doc); err != nil {
		return nil, fmt.Errorf("the daemon could bring it by a CDI spec, which is not written: %w", err)
	}
	return []string{doc.Kind + "=" + name}, nil
}

func (s *Sandbox) writeSpec(dir, name string, doc *specs.Spec) error {
	lock, err := s.lockSteps()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	// Intent before effect: who closes the sandbox must know of it.
	if err := s.noteSpec(filepath.Join(dir, name+".yaml")); err != nil {
		return err
	}
	_, err = cdi.Write(cdi.Host{}, dir, name, doc)
	return err
}

// lockSteps keeps the sandbox from being closed, for a moment; ErrNotFound where it was, also if it was opened anew since.
func (s *Sandbox) lockSteps() (*os.File, error) {
	dir := s.stepsDir()
	lock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sandbox %s: %w: it was closed meanwhile", s.spec.ID, berth.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	had, err := lock.Stat()
	if err == nil {
		var has fs.FileInfo
		if has, err = os.Stat(dir); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(had, has) {
			err = fmt.Errorf("sandbox %s: %w: it was closed meanwhile", s.spec.ID, berth.ErrNotFound)
		}
	}
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	return lock, nil
}

// discard takes away the sandbox's specs and then its directory, at once: half a sandbox would look like one. No start
// writes a spec meanwhile, and none can later.
func (s *Sandbox) discard() (remove func() error, err error) {
	lock, err := lockDir(s.stepsDir())
	if err == nil {
		defer func() { _ = lock.Close() }()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", kindOf(err), err)
	}
	if err := s.removeSpecs(); err != nil {
		return nil, fmt.Errorf("%w: %w", kindOf(err), err)
	}
	return scratch.Discard(s.e.sandboxDir(s.spec.ID), s.e.trash())
}

// specsFile lists, in a sandbox's directory, the specs that are its own.
const specsFile = "cdi-specs"

func (s *Sandbox) specs() ([]string, error) {
	data, err := os.ReadFile(filepath.Join(s.e.sandboxDir(s.spec.ID), specsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' }), nil
}

func (s *Sandbox) noteSpec(path string) error {
	have, err := s.specs()
	if err != nil || slices.Contains(have, path) {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.e.sandboxDir(s.spec.ID), specsFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, path)
	return errors.Join(err, f.Close())
}

// removeSpecs removes the sandbox's specs. Its containers are gone by then.
func (s *Sandbox) removeSpecs() error {
	have, err := s.specs()
	for _, path := range have {
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// leftSpecs are the files with specs of this owner's sandboxes of which this engine has no directory, by sandbox. None is looked
// into: whose it is its name says, which no other program gives a file.
func (e *Engine) leftSpecs(host *hostInfo) (map[string][]string, error) {
	left := map[string][]string{}
	if !hasSpecs(host) {
		return left, nil
	}
	dirs := slices.Concat(host.cdiDirs, cdi.DefaultDirs)
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("specs of sandboxes: %w: %w", kindOf(err), err)
		}
		for _, d := range entries {
			owner, sandbox, ok := cdi.LentTo(d.Name())
			if ok && d.Type().IsRegular() && owner == e.owner && berth.CheckID(sandbox) == nil && !exists(e.sandboxDir(sandbox)) {
				left[sandbox] = append(left[sandbox], filepath.Join(dir, d.Name()))
			}
		}
	}
	return left, nil
}

// purgeSpecs removes what leftSpecs has of a sandbox, and reports whether there was something.
func (e *Engine) purgeSpecs(host *hostInfo, id string) (removed bool, err error) {
	left, err := e.leftSpecs(host)
	for _, file := range left[id] {
		switch rerr := os.Remove(file); {
		case rerr == nil:
			removed = true
		case !errors.Is(rerr, fs.ErrNotExist):
			err = errors.Join(err, fmt.Errorf("spec of sandbox %s: %w: %w", id, kindOf(rerr), rerr))
		}
	}
	return removed, err
}
