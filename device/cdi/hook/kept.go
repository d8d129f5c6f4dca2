package hook

import "sync"

// linkerFiles are what finds an image's libraries and those that are new: the linker's cache, links beside the
// libraries, and directories for an ldconfig that is run later.
type linkerFiles struct {
	cache []byte
	links []symlink
	added []string
}

type symlink struct{ target, name string }

// Kept keeps what is costly to find out about a container for the next one that is alike: to read the headers of all
// libraries of an image takes longer than its start. It may be used concurrently; a nil one keeps nothing.
type Kept struct {
	mu    sync.Mutex
	files map[string]linkerFiles
	bytes int
}

// maxKept bounds what is kept, in bytes. The cache of an image with some hundred libraries has 30 KiB.
const maxKept = 1 << 20

func (k *Kept) recall(key string) (linkerFiles, bool) {
	if k == nil || key == "" {
		return linkerFiles{}, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.files[key]
	return f, ok
}

func (k *Kept) keep(key string, f linkerFiles) {
	if k == nil || key == "" || f.size() > maxKept {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.files[key]; ok {
		return
	}
	if k.bytes += f.size(); k.files == nil || k.bytes > maxKept {
		k.files, k.bytes = map[string]linkerFiles{}, f.size()
	}
	k.files[key] = f
}

// size is about what it takes in memory.
func (f *linkerFiles) size() int {
	n := len(f.cache)
	for _, l := range f.links {
		n += 100 + len(l.target) + len(l.name)
	}
	return n
}
