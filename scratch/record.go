package scratch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
)

const (
	recordName    = "scratch.json"
	recordVersion = 1
)

// record is what an area must know of itself after a crash. An area without limits has none.
type record struct {
	Version     int    `json:"version"`
	Boot        string `json:"boot"`            // the kernel's boot id
	Limit       int64  `json:"limit,omitempty"` // bytes of the whole
	SampleTotal bool   `json:"sample_total,omitempty"`
	Parts       []part `json:"parts,omitempty"`
}

// part is a directory of the area with a limit of its own: the main one or a sized volume.
type part struct {
	Name    string                `json:"name"`
	Size    int64                 `json:"size,omitempty"` // bytes; 0 is no limit
	Way     berth.DiskEnforcement `json:"way"`
	Project uint32                `json:"project,omitempty"` // quota project id
}

func (p part) dir(area string) string { return filepath.Join(area, p.Name) }

func (p part) image(area string) string { return filepath.Join(area, p.Name+imageSuffix) }

// what names the part's limit to people.
func (p part) what(limit int64) string {
	if v, ok := strings.CutPrefix(p.Name, volumePrefix); ok {
		return "volume " + v
	}
	if limit > p.Size {
		return fmt.Sprintf("disk limit (less %s set aside for sized volumes)", inWords(limit-p.Size))
	}
	return "disk limit"
}

// part finds the part of a sized volume.
func (r record) part(volume string) (part, bool) {
	for _, p := range r.Parts {
		if p.Name == volumePrefix+volume {
			return p, true
		}
	}
	return part{}, false
}

func readRecord(dir string) (record, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	var r record
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && r.Version != recordVersion {
		err = fmt.Errorf("%w: version %d; this berth knows %d", berth.ErrUnsupported, r.Version, recordVersion)
	}
	if err != nil {
		return record{}, fmt.Errorf("read %s: %w", filepath.Join(dir, recordName), err)
	}
	for _, p := range r.Parts {
		if !validName(p.Name) {
			return record{}, fmt.Errorf("read %s: %w: part %q", filepath.Join(dir, recordName), berth.ErrInvalid, p.Name)
		}
	}
	return r, nil
}

// writeRecord writes the record whole or not at all.
func writeRecord(dir string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, recordName+".tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return kindOf(err)
	}
	return kindOf(os.Rename(tmp, filepath.Join(dir, recordName)))
}

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
