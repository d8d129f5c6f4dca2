package device

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/berth-project/berth/device/cdi"
)

// keptSpec is what the specs on disk say of a unit, in the words of their host. It is kept between processes: to read
// the spec of a host with several of NVIDIA's GPUs takes longer than all else together.
type keptSpec struct {
	Key    string     `json:"key"`            // the names by which the unit was looked for
	Stamp  string     `json:"stamp"`          // of the files
	Name   string     `json:"name,omitempty"` // "" if none of them has it
	Path   string     `json:"path,omitempty"` // of the spec that has
	Common *cdi.Edits `json:"common,omitempty"`
	Own    *cdi.Edits `json:"own,omitempty"`
	Unread []unread   `json:"unread,omitempty"`
	// Stale is why the spec that has it, which berth wrote, does not count, while that differs so.
	Stale *cdi.StaleError `json:"stale,omitempty"`
}

// unread is a spec file that could not be read, and why.
type unread struct {
	Path string `json:"path"`
	Text string `json:"text"`
}

// specStamp names the spec files as they are, but for those of sandboxes; "" if there are none.
func (p *Pool) specStamp() string {
	sum, n := sha256.New(), 0
	for _, dir := range p.cfg.Specs.Dirs() {
		for _, file := range p.cfg.Host.Glob(dir + "/*") {
			if ext := path.Ext(file); ext != ".json" && ext != ".yaml" || cdi.IsLent(file) {
				continue
			}
			n++
			st, err := p.cfg.Host.Stat(file)
			if err != nil {
				fmt.Fprintln(sum, file, err)
				continue
			}
			fmt.Fprintln(sum, file, st.Size(), st.ModTime().UnixNano())
			if s, ok := st.Sys().(*syscall.Stat_t); ok {
				fmt.Fprintln(sum, s.Dev, s.Ino, s.Ctim)
			}
		}
	}
	if n == 0 {
		return ""
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func (p *Pool) specFile(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(p.cfg.Dir, "spec-"+hex.EncodeToString(sum[:8])+".json")
}

// recallSpec returns what another process has found in the same files, if it still fits the host.
func (p *Pool) recallSpec(key, stamp string) (k keptSpec, ok bool) {
	if p.cfg.Dir == "" {
		return k, false
	}
	data, err := os.ReadFile(p.specFile(key))
	if err != nil || json.Unmarshal(data, &k) != nil || k.Stamp != stamp || k.Key != key {
		return keptSpec{}, false
	}
	if k.Name == "" && k.Stale == nil {
		return k, true
	}
	var known []string
	if k.Stale != nil {
		known = k.Stale.Causes
	}
	differs, err := cdi.Differences(p.cfg.Host.CDI(), cdi.Append(nil, k.Common, k.Own))
	return k, err == nil && slices.Equal(differs, known)
}

func (p *Pool) keepSpec(k keptSpec) {
	if p.cfg.Dir == "" {
		return
	}
	data, err := json.Marshal(k)
	if err == nil {
		err = os.MkdirAll(p.cfg.Dir, 0o700)
	}
	if err == nil {
		err = replaceFile(p.specFile(k.Key), data, 0o600)
	}
	if err != nil {
		p.cfg.Logger.Warn("what specs say of a device is not kept", "err", err)
	}
}
