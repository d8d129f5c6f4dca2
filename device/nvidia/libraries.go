package nvidia

import (
	"debug/elf"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// libraryDirs are where distributions and installers put the driver's libraries, beside what ld.so.conf names.
var libraryDirs = []string{
	"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib",
	"/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/aarch64-linux-gnu/nvidia/current",
	"/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/lib",
	"/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/opt/nvidia/lib64",
	"/run/opengl-driver/lib", // NixOS
	"/",
}

// libraries are the driver's libraries for 64-bit programs.
type libraries struct {
	host    *device.Host
	version string
	dirs    []string            // that hold libraries of the version
	files   []string            // the libraries
	modules []string            // the modules of the X server
	listed  map[string][]string // entries of directories that were read: some have thousands
}

// findLibraries finds the libraries of a version of the driver.
func findLibraries(h *device.Host, version string, more []string) (*libraries, error) {
	l := &libraries{host: h, version: version, listed: map[string][]string{}}
	others := map[string]bool{}
	for _, dir := range slices.Concat(more, ldConfDirs(h), libraryDirs) {
		dir, err := h.Resolve(dir)
		if err != nil || slices.Contains(l.dirs, dir) || is32Bit(dir) {
			continue
		}
		if len(l.glob(dir, "lib*.so."+version)) > 0 {
			l.dirs = append(l.dirs, dir)
		}
		for _, file := range slices.Concat(l.glob(dir, "libcuda.so.*.*"), l.glob(dir, "libnvidia-ml.so.*.*")) {
			_, v, _ := strings.Cut(path.Base(file), ".so.")
			others[v] = true
		}
	}
	if l.dirs != nil {
		l.files, l.modules = l.all(), l.xorg()
		return l, nil
	}
	installed := "none are"
	if len(others) > 0 {
		installed = "those of " + strings.Join(slices.Sorted(maps.Keys(others)), ", ") + " are: reboot, or load the driver anew"
	}
	return nil, fmt.Errorf("NVIDIA driver: %w: %s is loaded and its libraries are not installed; %s", berth.ErrUnavailable, version, installed)
}

func is32Bit(dir string) bool {
	return strings.Contains(dir, "i386") || strings.HasSuffix(dir, "lib32")
}

// ldConfDirs returns the directories that /etc/ld.so.conf and the files that it usually includes name.
func ldConfDirs(h *device.Host) []string {
	var dirs []string
	for _, file := range append([]string{"/etc/ld.so.conf"}, h.Glob("/etc/ld.so.conf.d/*.conf")...) {
		text, err := h.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); path.IsAbs(line) {
				dirs = append(dirs, line)
			}
		}
	}
	return dirs
}

// glob returns the entries of one directory that match a pattern.
func (l *libraries) glob(dir, pattern string) []string {
	all, ok := l.listed[dir]
	if !ok {
		all = l.host.Glob(path.Join(dir, "*"))
		l.listed[dir] = all
	}
	var files []string
	for _, file := range all {
		if match, _ := path.Match(pattern, path.Base(file)); match {
			files = append(files, file)
		}
	}
	return files
}

// find returns the files in the driver's directories that match the patterns, resolved, each once.
func (l *libraries) find(patterns ...string) []string {
	var files []string
	for _, dir := range l.dirs {
		for _, pattern := range patterns {
			sub, name := path.Split(pattern)
			for _, file := range l.glob(path.Join(dir, sub), name) {
				file, err := l.host.Resolve(file)
				if err == nil && !slices.Contains(files, file) {
					files = append(files, file)
				}
			}
		}
	}
	return files
}

// all returns the driver's libraries, and those that come with it under versions of their own.
func (l *libraries) all() []string {
	return l.find("*.so."+l.version, "vdpau/*.so."+l.version, "libnvidia-nvvm70.so.*",
		"libnvidia-egl-gbm.so.*.*", "libnvidia-egl-wayland.so.*.*", "libnvidia-egl-wayland2.so.*.*",
		"libnvidia-egl-xcb.so.*.*", "libnvidia-egl-xlib.so.*.*")
}

// xorg returns the modules of the X server.
func (l *libraries) xorg() []string {
	var files []string
	for _, dir := range append(slices.Clone(l.dirs), "/usr/lib", "/usr/lib64") {
		for _, sub := range []string{"nvidia/xorg", "xorg/modules/drivers", "xorg/modules/extensions"} {
			for _, name := range []string{"nvidia_drv.so", "libglxserver_nvidia.so." + l.version} {
				for _, file := range l.glob(path.Join(dir, sub), name) {
					if !slices.ContainsFunc(files, func(f string) bool { return path.Base(f) == name }) {
						files = append(files, file)
					}
				}
			}
		}
	}
	return files
}

// links returns the symbolic links that belong to the files, in the form "target::link" of the hook.
func (l *libraries) links() []string {
	var links []string
	add := func(target, link string) {
		if s := target + "::" + link; !slices.Contains(links, s) {
			links = append(links, s)
		}
	}
	for _, file := range slices.Concat(l.files, l.modules) {
		dir, name := path.Split(file)
		base, ours := strings.CutSuffix(name, ".so."+l.version)
		switch {
		case !ours:
		case base == "libcuda":
			// Programs dlopen it under this name, though only development packages have it.
			add("libcuda.so.1", dir+"libcuda.so")
		case base == "libGLX_nvidia":
			add(name, dir+"libGLX_indirect.so.0")
		case base == "libnvidia-opticalflow":
			add("libnvidia-opticalflow.so.1", dir+"libnvidia-opticalflow.so")
		case base == "libnvidia-allocator":
			add("../libnvidia-allocator.so.1", dir+"gbm/nvidia-drm_gbm.so")
		case base == "libnvidia-vulkan-producer", base == "libglxserver_nvidia":
			add(name, dir+base+".so")
		}
		l.soLinks(file, add)
	}
	return links
}

// soLinks adds the links that the host has beside a library: its soname, and the name without a version.
func (l *libraries) soLinks(file string, add func(target, link string)) {
	dir, name := path.Split(file)
	soname := l.soname(file)
	if soname == "" {
		return
	}
	if soname != name && l.isLink(dir+soname) {
		add(name, dir+soname)
	}
	if stem, _, ok := strings.Cut(soname, ".so."); ok && l.isLink(dir+stem+".so") {
		add(soname, dir+stem+".so")
	}
}

func (l *libraries) isLink(name string) bool {
	_, err := l.host.Readlink(name)
	return err == nil
}

// soname returns the name under which programs load a library; "" if the file does not say.
func (l *libraries) soname(file string) string {
	f, err := l.host.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	lib, err := elf.NewFile(f)
	if err != nil {
		return ""
	}
	names, err := lib.DynString(elf.DT_SONAME)
	if err != nil || len(names) != 1 {
		return ""
	}
	return names[0]
}

// directories returns those of libraries, each once.
func directories(files []string) []string {
	var dirs []string
	for _, file := range files {
		if dir := path.Dir(file); strings.HasPrefix(path.Base(file), "lib") && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// DriverFiles returns the files of the driver that containers get, with the links to its libraries, and those of the
// linker's directories that hold some. Of a driver whose libraries are not installed they are those that are.
func DriverFiles(h *device.Host) (files, linker []string) {
	files = driverFiles(h)
	for _, dir := range ldConfDirs(h) {
		at, err := h.Resolve(dir)
		holds := func(file string) bool { return path.Dir(file) == at && strings.Contains(path.Base(file), ".so") }
		if err == nil && slices.ContainsFunc(files, holds) && !slices.Contains(linker, dir) {
			linker = append(linker, dir)
		}
	}
	return files, linker
}

func driverFiles(h *device.Host) (files []string) {
	version, err := NewDriver(h).Version()
	if err != nil || version == "" {
		return nil
	}
	add := func(file string) {
		if !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	libs, err := findLibraries(h, version, nil)
	if err != nil {
		for _, dir := range slices.Concat(ldConfDirs(h), libraryDirs) {
			for _, file := range slices.Concat(h.Glob(path.Join(dir, "libcuda.so*")), h.Glob(path.Join(dir, "libnvidia-ml.so*"))) {
				add(file)
			}
		}
		return files
	}
	var edits specs.ContainerEdits
	(Generator{Host: h}).addFiles(&edits, libs)
	for _, m := range edits.Mounts {
		add(m.HostPath)
		dir, name := path.Split(m.HostPath)
		stem, _, ok := strings.Cut(name, ".so.")
		if !ok {
			continue
		}
		for _, link := range libs.glob(path.Clean(dir), stem+".so*") {
			if libs.isLink(link) {
				add(link)
			}
		}
	}
	return files
}
