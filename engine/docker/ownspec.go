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

	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/grant"
)

// mayWriteSpecs reports whether this process writes specs that the daemon reads: as root, since they are read by the whole host.
func mayWriteSpecs(host *hostInfo) bool {
	return len(host.cdiDirs) > 0 && !host.remote && !host.rootless && os.Geteuid() == 0
}

// ownSpec has a daemon that injects CDI devices bring what its API has no words for, as hooks: by a spec of the sandbox's own, which has
// just what was lent, and goes with the sandbox. It lies in the directory that counts the most, which is of this boot alone on
// most hosts. Environment and groups are not in it: they are said by the API, and old readers know no groups.
func (s *Sandbox) ownSpec(host *hostInfo, vendor string, set *grant.Set) (names []string, err error) {
	edits := cdi.Append(nil, set.Edits)
	edits.Env, edits.AdditionalGIDs = nil, nil
	name := cdi.LentName(s.e.owner, s.spec.ID, vendor)
	doc := &specs.Spec{Kind: cdi.LentVendor + "/gpu", Devices: []specs.Device{{Name: name, ContainerEdits: *edits}}}
	dir := host.cdiDirs[len(host.cdiDirs)-1]
	// Intent before effect: who closes the sandbox must know of it.
	if err = s.noteSpec(filepath.Join(dir, name+".yaml")); err == nil {
		_, err = cdi.Write(cdi.Host{}, dir, name, doc)
	}
	if err != nil {
		return nil, fmt.Errorf("the daemon could bring it by a CDI spec, which is not written: %w", err)
	}
	return []string{doc.Kind + "=" + name}, nil
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
