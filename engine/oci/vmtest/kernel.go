package vmtest

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kernel is an unpacked kernel package.
type kernel struct {
	dir     string            // of all that was unpacked
	image   string            // vmlinuz
	modules map[string]string // file of each module, by its name with underscores
}

// packages are the meta packages whose kernels are tried: Debian's, then Ubuntu's.
func packages(arch string) []string {
	return []string{"linux-image-cloud-" + arch, "linux-image-virtual"}
}

// fetch finds the kernel in the cache, or brings it there.
func fetch(ctx context.Context, arch string) (kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return kernel{}, err
	}
	dir := filepath.Join(cache, "berth-test", "kernel-"+arch)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return kernel{}, err
	}
	// One of several test binaries fetches, the others wait.
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return kernel{}, err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return kernel{}, err
	}
	if k, err := open(dir); err == nil {
		return k, nil
	}
	if err := download(ctx, arch, dir); err != nil {
		return kernel{}, err
	}
	return open(dir)
}

// open looks at an unpacked kernel package.
func open(dir string) (kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(images) != 1 {
		return kernel{}, fmt.Errorf("%d kernels in %s", len(images), dir)
	}
	k := kernel{dir: dir, image: images[0], modules: map[string]string{}}
	err := filepath.WalkDir(filepath.Join(dir, "lib", "modules"), func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok && err == nil && !d.IsDir() {
			k.modules[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	return k, err
}

// download fetches and unpacks a kernel package; what is in dir when it returns is whole.
func download(ctx context.Context, arch, dir string) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "fetch-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	apt, err := aptFor(ctx, arch, filepath.Join(tmp, "apt"))
	if err != nil {
		return err
	}
	names, err := resolve(ctx, arch, apt)
	if err != nil {
		return err
	}
	if arch != runtime.GOARCH {
		names = append(names, "busybox-static")
	}
	if out, err := run(ctx, tmp, "apt-get", slices.Concat(apt, []string{"download"}, names)...); err != nil {
		return fmt.Errorf("apt-get download %s: %w: %s", strings.Join(names, " "), err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	for _, deb := range debs {
		if out, err := run(ctx, tmp, "dpkg-deb", "-x", deb, "root"); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", deb, err, out)
		}
	}
	for _, d := range []string{"lib", "boot"} { // merged /usr has the modules in /usr/lib
		if _, err := os.Stat(filepath.Join(tmp, "root", d)); errors.Is(err, fs.ErrNotExist) {
			if err := os.Symlink("usr/"+d, filepath.Join(tmp, "root", d)); err != nil {
				return err
			}
		}
	}
	return os.Rename(filepath.Join(tmp, "root"), dir)
}

// aptFor are the options with which apt serves an architecture that is not this host's, from lists of its own in
// dir, so that the host's own packages are left as they are.
func aptFor(ctx context.Context, arch, dir string) ([]string, error) {
	if arch == runtime.GOARCH {
		return nil, nil
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	opts := []string{
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures::=" + arch, "-o", "Dir::State::Status=/dev/null",
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root",
	}
	if out, err := run(ctx, "", "apt-get", append(opts, "update")...); err != nil {
		return nil, fmt.Errorf("apt-get update for %s: %w: %s", arch, err, out)
	}
	return opts, nil
}

// resolve finds the packages of the current kernel: the image and, with Ubuntu, its modules.
func resolve(ctx context.Context, arch string, apt []string) ([]string, error) {
	for _, meta := range packages(arch) {
		out, err := run(ctx, "", "apt-cache", slices.Concat(apt, []string{"depends", meta})...)
		if err != nil {
			continue
		}
		var names []string
		for line := range strings.Lines(string(out)) {
			name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
			if ok && (strings.HasPrefix(name, "linux-image-") || strings.HasPrefix(name, "linux-modules-")) {
				names = append(names, name)
			}
		}
		if len(names) == 1 && meta == "linux-image-virtual" {
			names = append(names, strings.Replace(names[0], "image", "modules", 1))
		}
		if len(names) > 0 {
			return names, nil
		}
	}
	return nil, fmt.Errorf("apt knows none of %s: apt-get update", strings.Join(packages(arch), ", "))
}

func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	return c.CombinedOutput()
}

// needed lists the files of modules and of all that they need, in the order in which to load them. A module
// that is not there is built in, or the test will find out.
func (k kernel) needed(names []string) ([]string, error) {
	var files []string
	var add func(name string) error
	add = func(name string) error {
		file := k.modules[strings.ReplaceAll(name, "-", "_")]
		if file == "" || slices.Contains(files, file) {
			return nil
		}
		deps, err := depends(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		files = append(files, file)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// depends reads what a module file says that it needs.
func depends(file string) ([]string, error) {
	plain, err := plainModule(file)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(plain)
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
