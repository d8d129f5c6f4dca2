package vmtest

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// init runs first. pivot_root is not possible on the initramfs, so everything moves to a tmpfs.
const initScript = `#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /new
$b mount -t tmpfs -o mode=755 root /new
$b cp -a /bin /etc /modules /rc /files/. /new/ 2>/dev/null
cd /new
$b mkdir -p proc sys dev tmp run root var/tmp usr/bin sbin mnt
exec $b switch_root /new /rc
`

const rcHead = `
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
chmod 1777 /tmp /var/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /dev/pts
ln -sf pts/ptmx /dev/ptmx
mount -t tmpfs -o mode=1777 shm /dev/shm
ln -s /proc/self/fd /dev/fd
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for m in /modules/*; do insmod $m; done
ip link set lo up
stty -F $output raw
run() {
	"$@" </dev/null >$output 2>&1
	echo $? >$status
}
# stuck tells, once, what there is when nearly all time is over: processes, where they sleep, goroutines.
stuck() {
	echo "== nearly all time is over; here is what runs:"
	for p in /proc/[0-9]*; do
		line=$(tr '\0' ' ' <$p/cmdline | cut -c1-200)
		[ "$line" ] || continue # the kernel's own
		echo "$p: $line"
		grep -E '^(State|PPid|NSpid)' $p/status
		for t in $p/task/*; do echo "$t $(cat $t/wchan)"; sed 's/^/	/' $t/stack; done
	done
	echo "== goroutines:"
	for p in /proc/[0-9]*; do
		! tr '\0' ' ' <$p/cmdline | grep -q '^[^ ]*\(berth\|/test\)' || kill -QUIT ${p#/proc/}
	done
}
`

// writeInitramfs writes an archive in the kernel's format with all that the machine needs.
func writeInitramfs(name string, k kernel, arch machine, cfg Config) error {
	busybox, err := staticBusybox(k)
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	w := &cpio{w: bufio.NewWriterSize(f, 1<<20), dirs: map[string]bool{}}
	w.node("dev/console", 0o20600, 5, 1)
	w.file("bin/busybox", 0o755, busybox)
	w.file("init", 0o755, []byte(initScript))
	w.file("rc", 0o755, []byte(script(arch, cfg)))
	w.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n"))
	w.file("etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\n"))
	w.file("etc/hosts", 0o644, []byte("127.0.0.1\tlocalhost\n"))
	w.file("etc/resolv.conf", 0o644, nil)
	w.file("etc/subuid", 0o644, []byte("user:100000:65536\n"))
	w.file("etc/subgid", 0o644, []byte("user:100000:65536\n"))
	w.dir("modules")
	w.dir("files")
	modules, err := k.needed(cfg.Modules)
	if err != nil {
		return err
	}
	for i, m := range modules {
		r, err := plainModule(m)
		if err != nil {
			return err
		}
		b := make([]byte, r.Size())
		if _, err := r.ReadAt(b, 0); err != nil {
			return err
		}
		w.file(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(m)), 0o644, b)
	}
	for _, guest := range sortedKeys(cfg.Files) {
		if err := w.copy(path.Join("files", guest), cfg.Files[guest]); err != nil {
			return err
		}
	}
	return w.close()
}

// script is what runs on the tmpfs root.
func script(arch machine, cfg Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#!/bin/busybox sh\noutput=%s status=%s%s", arch.output, arch.status, rcHead)
	for _, e := range cfg.Env {
		fmt.Fprintf(&b, "export %s\n", quote(e))
	}
	fmt.Fprintf(&b, "while sleep %d; do echo %s >$status; done &\n", int(beatEvery.Seconds()), beat)
	fmt.Fprintf(&b, "(sleep %d; stuck) >$output 2>&1 &\n", int(cfg.stuckAfter.Seconds()))
	for _, c := range cfg.Commands {
		b.WriteString("run")
		for _, a := range c {
			b.WriteString(" " + quote(a))
		}
		b.WriteString("\n")
	}
	b.WriteString("sync\nreboot -f\n")
	return b.String()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// staticBusybox finds a busybox that needs no libraries: the one that came with the kernel, or this host's.
func staticBusybox(k kernel) ([]byte, error) {
	for _, name := range []string{filepath.Join(k.dir, "bin/busybox"), filepath.Join(k.dir, "usr/bin/busybox"), "/bin/busybox", "/usr/bin/busybox", "/bin/busybox-static"} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			continue
		}
		if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			return b, nil
		}
	}
	return nil, fmt.Errorf("there is no static busybox: apt-get install busybox-static")
}

// plainModule is a module file, decompressed where it is compressed.
func plainModule(file string) (*bytes.Reader, error) {
	var b []byte
	var err error
	switch filepath.Ext(file) {
	case ".xz":
		b, err = exec.Command("xz", "-dc", file).Output() //nolint:noctx // milliseconds
	case ".zst":
		b, err = exec.Command("zstd", "-dc", file).Output() //nolint:noctx // milliseconds
	default:
		b, err = os.ReadFile(file)
	}
	return bytes.NewReader(b), err
}

// cpio writes an archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w    *bufio.Writer
	ino  int
	dirs map[string]bool
	err  error
}

func (c *cpio) entry(name string, mode uint32, major, minor int, data []byte) {
	if c.err != nil {
		return
	}
	c.ino++
	_, c.err = fmt.Fprintf(c.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	c.pad(110 + len(name) + 1)
	if c.err == nil {
		_, c.err = c.w.Write(data)
	}
	c.pad(len(data))
}

func (c *cpio) pad(n int) {
	if c.err == nil {
		_, c.err = c.w.WriteString("\x00\x00\x00"[:(4-n%4)%4])
	}
}

func (c *cpio) dir(name string) {
	if name == "." || name == "/" || c.dirs[name] {
		return
	}
	c.dir(path.Dir(name))
	c.dirs[name] = true
	c.entry(name, 0o40755, 0, 0, nil)
}

func (c *cpio) file(name string, perm uint32, data []byte) {
	c.dir(path.Dir(name))
	c.entry(name, 0o100000|perm, 0, 0, data)
}

func (c *cpio) node(name string, mode uint32, major, minor int) {
	c.dir(path.Dir(name))
	c.entry(name, mode, major, minor, nil)
}

// copy adds a file or directory of this host.
func (c *cpio) copy(to, from string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		name := path.Join(to, rel)
		info, err := d.Info()
		if err == nil && p == from && info.Mode()&fs.ModeSymlink != 0 {
			info, err = os.Stat(p)
		}
		if err != nil {
			return err
		}
		switch {
		case info.IsDir():
			c.dir(name)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			c.dir(path.Dir(name))
			c.entry(name, 0o120777, 0, 0, []byte(target))
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p) //nolint:gosec // a directory of the test
			if err != nil {
				return err
			}
			c.file(name, uint32(info.Mode().Perm()), b)
		}
		return c.err
	})
}

func (c *cpio) close() error {
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}
