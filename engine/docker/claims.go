package docker

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
)

// A claim is a file that says that this data directory has brought an image to the daemon under a name: it holds the
// image's ID, and a further line for one that was pulled; its time is that of the last use. An image without a name has
// its ID for one.
const pulledMark = "\npulled"

func (e *Engine) claimFile(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(e.cfg.Dir, "images", hex.EncodeToString(sum[:16]))
}

// claimImage notes that an image is this data directory's, to prune.
func (e *Engine) claimImage(img berth.Image, pulled bool) {
	file := e.claimFile(cmp.Or(img.Ref, img.ID))
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		text := img.ID
		if pulled {
			text += pulledMark
		}
		err = os.WriteFile(file, []byte(text), 0o600)
	}
	if err != nil {
		e.cfg.Logger.Warn("image not noted: it will not be pruned", "image", img.Ref, "error", err)
	}
}

// useImage notes the use of an image, where it is this data directory's.
func (e *Engine) useImage(img berth.Image) {
	now := time.Now()
	_ = os.Chtimes(e.claimFile(cmp.Or(img.Ref, img.ID)), now, now) // most are not
}

// claimed are the names under which this data directory has brought an image to the daemon, those of them under
// which it did not pull it, whether it pulled it under any, and its last use.
func (e *Engine) claimed(i image.Info) (names, local []string, pulled bool, used time.Time) {
	all := i.Refs
	if len(all) == 0 { // else somebody has given it the names since: to remove it by its ID would take the last of them along
		all = []string{i.ID}
	}
	for _, n := range all {
		raw, err := os.ReadFile(e.claimFile(n))
		id, marked := strings.CutSuffix(string(raw), pulledMark)
		if err != nil || id != i.ID {
			continue
		}
		names, pulled = append(names, n), pulled || marked
		if !marked && n != i.ID { // by its ID alone it has no name to stay for
			local = append(local, n)
		}
		if st, err := os.Stat(e.claimFile(n)); err == nil && st.ModTime().After(used) {
			used = st.ModTime()
		}
	}
	return names, local, pulled, used
}
