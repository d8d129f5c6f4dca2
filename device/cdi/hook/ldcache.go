package hook

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/inroot"
)

const (
	cacheFile = "/etc/ld.so.cache"
	confFile  = "/etc/ld.so.conf"
	ownConf   = confDir + "/00-berth.conf"
)

// updateLDCache has the container's dynamic linker find the libraries in each --folder. It writes the linker's
// cache itself: the container's ldconfig must not be run as root of the host, and the host's would, in C, parse
// files that the image's maker wrote, needs to be there, and to fit the image's C library.
func updateLDCache(flags *flag.FlagSet) func(*job) error {
	var folders list
	flags.Var(&folders, "folder", "a directory of libraries in the container; may be given again")
	flags.String("ldconfig-path", "", "taken for NVIDIA's sake; no ldconfig is run")
	return func(j *job) error {
		for _, f := range folders {
			if !path.IsAbs(f) || strings.ContainsAny(f, "\n#") {
				return fmt.Errorf("--folder %q is not the absolute path of a directory", f)
			}
		}
		if j.isMusl() {
			return j.extendMuslPath(folders)
		}
		return j.extendCache(folders)
	}
}

func (j *job) extendCache(folders []string) error {
	key := j.key
	if key != "" {
		key = fmt.Sprintf("%s %q", key, folders)
	}
	var made linkerFiles
	ok := false
	if !j.root.Strayed() { // else what was made before may be another than in the container before
		made, ok = j.kept.recall(key)
	}
	if !ok {
		made = j.newCache(folders)
		if j.large {
			return nil // what is there now is for the program to extend
		}
		if err := j.end(); err != nil {
			return err
		}
		if !j.root.Strayed() {
			j.kept.keep(key, made)
		}
	}
	for _, l := range made.links {
		if err := CreateSymlink(j.root, l.target, l.name); err != nil {
			return err
		}
	}
	if err := j.keepForLater(made.added); err != nil {
		return err
	}
	return j.root.WriteFile(cacheFile, made.cache, 0o644)
}

// newCache finds out what the linker's cache is to be.
func (j *job) newCache(folders []string) (made linkerFiles) {
	c := &linkerCache{}
	data, err := j.root.ReadFile(cacheFile, j.most.cache)
	whole := err != nil // there is nothing to add to
	if err == nil {
		if c, err = parseLinkerCache(data, j.most.texts); err != nil {
			j.tooMuch(errors.Is(err, errLarge))
			j.warn("%s: %v; it is made anew", cacheFile, err)
			c, whole = &linkerCache{}, true
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		j.tooMuch(errors.Is(err, inroot.ErrLarge))
		j.warn("%v; it is made anew", err)
	}
	known := map[string]bool{}
	for _, e := range c.entries {
		known[path.Dir(e.path)] = true
	}
	if j.stopped() {
		return made
	}
	// As with ldconfig: first the image's CUDA where it was chosen, then what is new, then what was there. A
	// directory that was known keeps its place, behind.
	first, last := j.confDirs(path.Join(confDir, "00-compat-*.conf")), []string{}
	for _, f := range folders {
		switch {
		case slices.Contains(made.added, f):
		case known[f] || slices.Contains(systemDirs, f):
			last = append(last, f)
		default:
			first, made.added = append(first, f), append(made.added, f)
		}
	}
	if whole {
		last = append(last, j.confDirs(confFile)...)
	}
	seen := map[cacheEntry]bool{}
	all := &linkerCache{hwcaps: c.hwcaps}
	add := func(entries []cacheEntry) {
		for _, e := range entries {
			if !seen[e] {
				seen[e] = true
				all.entries = append(all.entries, e)
			}
		}
	}
	for _, dir := range first {
		if j.stopped() {
			return made
		}
		add(j.scan(dir, &made))
	}
	add(c.entries)
	for _, dir := range last {
		if j.stopped() {
			return made
		}
		add(j.scan(dir, &made))
	}
	if j.stopped() {
		return made
	}
	made.cache = all.bytes()
	return made
}

// systemDirs are where glibc looks without being told.
var systemDirs = []string{
	"/lib", "/usr/lib", "/lib64", "/usr/lib64",
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
}

// keepForLater has an ldconfig that is run in the container find the new directories too.
func (j *job) keepForLater(dirs []string) error {
	if len(dirs) == 0 {
		return nil
	}
	if _, err := j.root.Lstat(confFile); errors.Is(err, fs.ErrNotExist) {
		if err := j.root.WriteFile(confFile, []byte("include "+confDir+"/*.conf\n"), 0o644); err != nil {
			return err
		}
	}
	return j.root.WriteFile(ownConf, []byte(strings.Join(dirs, "\n")+"\n"), 0o644)
}

// What bounds the time and memory that an image's configuration and directories can take.
const (
	maxConfFiles    = 1024
	maxConfDirs     = 512
	maxConfSize     = 1 << 20 // bytes of a file
	maxConfPatterns = 4096    // that are included
	maxConfDepth    = 16      // of files that include others
	maxEntries      = 1 << 16 // of a directory
)

// bounds are those that a long-lived process sets lower for itself than the program, which ends.
type bounds struct {
	cache      int64 // bytes of the linker's cache
	texts      int   // bytes of its names and paths, which may overlap in the file; and as many of those that are found
	confBytes  int   // of all configuration
	allEntries int   // of all directories
	leaves     bool  // what is beyond them is left to another process, all of it
}

var (
	ofProgram = bounds{cache: 8 << 20, texts: 16 << 20, confBytes: 8 << 20, allEntries: 1 << 18}
	ofInside  = bounds{cache: 1 << 20, texts: 2 << 20, confBytes: 1 << 20, allEntries: 1 << 14, leaves: true}
)

// list lists a directory, unless the image has more of them than anybody needs.
func (j *job) list(dir string) ([]fs.DirEntry, error) {
	left := min(maxEntries, j.most.allEntries-j.entries)
	if left <= 0 {
		j.tooMuch(true)
		return nil, fmt.Errorf("the directories have more than %d entries in all", j.most.allEntries)
	}
	entries, err := j.root.ReadSome(dir, left)
	if errors.Is(err, inroot.ErrLarge) {
		// It was read, though for nothing.
		j.tooMuch(true)
		j.entries += left
	}
	j.entries += len(entries)
	return entries, err
}

// found counts what a name that was found takes in memory, and says whether that is still within bounds.
func (j *job) found(bytes int) bool {
	if j.texts <= j.most.texts {
		if j.texts += bytes; j.texts > j.most.texts {
			j.tooMuch(true)
			j.warn("the names of libraries and of their configuration have more than %d bytes; the rest is left out", j.most.texts)
		}
	}
	return j.texts <= j.most.texts
}

// confDirs are the directories that a linker configuration, or those that a pattern finds, name in order.
func (j *job) confDirs(pattern string) []string {
	c := conf{job: j, read: map[string]bool{}, known: map[string]bool{}}
	c.files(pattern, 0)
	if c.beyond != "" {
		j.warn("%s: %s; the rest is left out", pattern, c.beyond)
	}
	return c.dirs[:min(len(c.dirs), maxConfDirs)]
}

// conf reads linker configuration, each file once.
type conf struct {
	*job
	read     map[string]bool
	known    map[string]bool // dirs
	dirs     []string
	patterns int
	bytes    int
	beyond   string // which bound was reached
}

// full says whether a bound is reached.
func (c *conf) full(depth int) bool {
	if c.beyond != "" || c.stopped() {
		return true
	}
	for _, b := range []struct {
		have, most int
		what       string
	}{
		{len(c.dirs), maxConfDirs, "directories"},
		{len(c.read), maxConfFiles, "files"},
		{c.bytes, c.most.confBytes, "bytes of its files"},
		{c.patterns, maxConfPatterns, "patterns to include"},
		{depth, maxConfDepth, "files that include each other"},
	} {
		if b.have > b.most {
			c.beyond = fmt.Sprintf("more than %d %s", b.most, b.what)
			c.tooMuch(b.what == "bytes of its files")
		}
	}
	return c.beyond != ""
}

func (c *conf) files(pattern string, depth int) {
	c.patterns++
	if c.full(depth) {
		return
	}
	for _, file := range c.glob(pattern) {
		if c.read[file] {
			continue
		}
		c.read[file] = true
		if c.full(depth) {
			return
		}
		data, err := c.root.ReadFile(file, maxConfSize)
		c.bytes += len(data) // also of one that is too large
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if c.full(depth) {
				return
			}
			line, _, _ = strings.Cut(line, "#")
			c.line(path.Dir(file), depth, strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n:,", r) }))
		}
	}
}

func (c *conf) line(from string, depth int, fields []string) {
	switch {
	case len(fields) == 0 || fields[0] == "hwcap":
	case fields[0] == "include":
		for _, p := range fields[1:] {
			if !path.IsAbs(p) {
				p = path.Join(from, p)
			}
			c.files(p, depth+1)
		}
	default:
		for _, d := range fields {
			d, _, _ = strings.Cut(d, "=")
			if path.IsAbs(d) && !c.known[path.Clean(d)] && len(c.dirs) <= maxConfDirs {
				c.dirs, c.known[path.Clean(d)] = append(c.dirs, path.Clean(d)), true
			}
		}
	}
}

// glob finds the files whose last part fits.
func (j *job) glob(pattern string) []string {
	if !strings.ContainsAny(path.Base(pattern), "*?[") {
		return []string{pattern}
	}
	entries, err := j.list(path.Dir(pattern))
	if err != nil {
		return nil
	}
	var files []string
	for _, e := range entries {
		if ok, _ := path.Match(path.Base(pattern), e.Name()); ok {
			file := path.Join(path.Dir(pattern), e.Name())
			if !j.found(len(file)) {
				break
			}
			files = append(files, file)
		}
	}
	return files
}

// scan finds the libraries of a directory, and gives each the link of its soname that programs look for.
func (j *job) scan(dir string, made *linkerFiles) []cacheEntry {
	entries, err := j.list(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			j.warn("%v; it is left out", err)
		}
		return nil
	}
	byName := map[string]cacheEntry{}
	newest := map[string]cacheEntry{} // by soname
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, "lib") && !strings.HasPrefix(name, "ld") || !strings.Contains(name, ".so") {
			continue
		}
		if j.stopped() {
			return nil
		}
		entry := cacheEntry{name: name, path: path.Join(dir, name)}
		lib, err := j.library(entry.path)
		if err != nil {
			continue
		}
		if !j.found(len(entry.name) + len(entry.path) + len(lib.soname)) {
			break
		}
		entry.flags = lib.flags
		so := lib.soname
		if e.Type()&fs.ModeSymlink != 0 || so == "" || so == name || strings.ContainsAny(so, "/\n") || so == "." || so == ".." {
			byName[name] = entry
			continue
		}
		if old, ok := newest[so]; !ok || compareLibraries(name, path.Base(old.path)) > 0 {
			newest[so] = entry
		}
	}
	for _, so := range slices.Sorted(maps.Keys(newest)) {
		if j.stopped() {
			return nil
		}
		e := newest[so]
		if j.linkSoname(dir, so, path.Base(e.path), made) {
			e.path = path.Join(dir, so)
		}
		e.name = so
		byName[so] = e
	}
	var found []cacheEntry
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		found = append(found, byName[name])
	}
	return found
}

func (j *job) library(name string) (library, error) {
	f, err := j.root.OpenRegular(name)
	if err != nil {
		return library{}, err
	}
	defer f.Close()
	return readLibrary(f)
}

// linkSoname sees that dir has a link so to file. Without one, which is no error, the cache names the file.
func (j *job) linkSoname(dir, so, file string, made *linkerFiles) bool {
	link := path.Join(dir, so)
	if have, err := j.root.Readlink(link); err == nil && have == file {
		return true
	}
	if st, err := j.root.Lstat(link); err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return false // a file of its own, perhaps mounted there
	}
	// Not into a directory of the host that is mounted into the container.
	if !j.root.OwnMount(dir) {
		return false
	}
	if err := j.root.Symlink(file, link); err != nil {
		j.warn("%v", err)
		return false
	}
	made.links = append(made.links, symlink{file, link})
	return true
}

// isMusl says whether the image has musl for its C library, which knows no cache.
func (j *job) isMusl() bool {
	st, err := j.root.Stat("/etc/alpine-release")
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// extendMuslPath puts the folders into the list of directories that musl searches.
func (j *job) extendMuslPath(folders []string) error {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	file := "/etc/ld-musl-" + arch + ".path"
	dirs := []string{"/lib", "/usr/local/lib", "/usr/lib"} // what musl searches without the file
	if data, err := j.root.ReadFile(file, maxConfSize); err == nil {
		dirs = strings.FieldsFunc(string(data), func(r rune) bool { return r == ':' || r == '\n' })
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range folders {
		if !slices.Contains(dirs, f) {
			dirs = append(dirs, f)
		}
	}
	return j.root.WriteFile(file, []byte(strings.Join(dirs, "\n")+"\n"), 0o644)
}
