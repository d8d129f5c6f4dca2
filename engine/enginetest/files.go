package enginetest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
)

// files are the checks of file systems, volumes and mounts.
func files() []Check {
	return []Check{
		check("root file system is its own", ownRoot),
		check("read-only root", readOnlyRoot, Mounts),
		check("steps share volumes", volumesShared),
		check("volume from this host", volumeFromHost),
		check("volume copies up", volumeCopiesUp),
		check("volume of another user", volumeOfUser, Users),
		check("bind mounts", binds, Mounts),
		check("tmpfs mounts", tmpfs, Mounts),
		check("mounts lie one in another", nestedMounts, Mounts),
		check("shared memory", sharedMemory, Mounts),
		check("standard files", standardFiles, Mounts),
		check("archive", archive, Archives),
	}
}

// ownRoot: what one container writes, another does not see, and what the image holds, all do.
func ownRoot(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	first, err := t.in(s, "cat /etc/enginetest; stat -c '%u:%g %a' /etc/enginetest; echo changed >/etc/enginetest; rm /etc/group; echo new >/new; cat /new /etc/enginetest")
	if err != nil {
		return err
	}
	second, err := t.in(s, "cat /etc/enginetest; ls /new 2>/dev/null; [ -s /etc/group ] && echo there")
	if err != nil {
		return err
	}
	return errors.Join(first.wrote("image\n1234:1235 640\nnew\nchanged\n"), same("what the second sees", second.Out, "image\nthere\n"))
}

func readOnlyRoot(t *trial) error {
	o, err := t.sh("(echo x >/file; echo x >/etc/enginetest) 2>/dev/null; echo x >/vol/file && cat /etc/enginetest /vol/file; echo x >/dev/shm/file && echo x >/dev/null && echo dev",
		shared, step(func(s *berth.StepSpec) { s.ReadOnly = true }))
	if err != nil {
		return err
	}
	return o.wrote("image\nx\ndev\n")
}

func volumesShared(t *trial) error {
	s, err := t.sandbox(shared, sandbox(func(s *berth.SandboxSpec) {
		s.Volumes = append(s.Volumes, berth.Volume{Path: "/deep/er/volume"})
	}))
	if err != nil {
		return err
	}
	o, err := t.in(s, "ls -A /vol /deep/er/volume | grep -v : | tr -d '\n'; stat -c %a /vol; echo one >/vol/file; echo two >/deep/er/volume/file")
	if err != nil {
		return err
	}
	if err := o.wrote("1777\n"); err != nil {
		return fmt.Errorf("a new volume: %w", err)
	}
	if o, err = t.in(s, "cat /vol/file /deep/er/volume/file; echo three >>/vol/file"); err != nil {
		return err
	}
	if err := o.wrote("one\ntwo\n"); err != nil {
		return err
	}
	if o, err = t.in(s, "cat /vol/file"); err != nil {
		return err
	}
	return o.wrote("one\nthree\n")
}

func volumeFromHost(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	root, err := s.Volume(t.ctx, "/vol")
	if errors.Is(err, berth.ErrUnsupported) {
		return nil // no disk is shared with this engine
	}
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.WriteFile("from-host", []byte("host\n"), 0o644); err != nil {
		return err
	}
	o, err := t.in(s, "cat /vol/from-host; mkdir /vol/d; echo container >/vol/d/file")
	if err != nil {
		return err
	}
	b, err := root.ReadFile("d/file")
	return errors.Join(o.wrote("host\n"), err, same("what the host reads", string(b), "container\n"))
}

func volumeCopiesUp(t *trial) error {
	at := func(copies bool) setup {
		return sandbox(func(s *berth.SandboxSpec) { s.Volumes = []berth.Volume{{Path: "/etc", CopyUp: copies}} })
	}
	s, err := t.sandbox(at(true))
	if err != nil {
		return err
	}
	o, err := t.in(s, "cat /etc/enginetest; stat -c '%u:%g %a' /etc/enginetest /etc; echo changed >/etc/enginetest")
	if err != nil {
		return err
	}
	if err := o.wrote("image\n1234:1235 640\n0:0 755\n"); err != nil {
		return err
	}
	if o, err = t.in(s, "cat /etc/enginetest"); err != nil {
		return err
	}
	if err := o.wrote("changed\n"); err != nil {
		return fmt.Errorf("the second step: %w", err)
	}
	if o, err = t.sh("ls /etc/enginetest 2>/dev/null || echo none", at(false)); err != nil {
		return err
	}
	return o.wrote("none\n")
}

func volumeOfUser(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	as := func(user string) setup { return step(func(s *berth.StepSpec) { s.User = user }) }
	if _, err := t.in(s, "umask 077; echo secret >/vol/file; mkdir /vol/dir; echo x >/vol/dir/file", as("1000:1000")); err != nil {
		return err
	}
	o, err := t.in(s, "cat /vol/file 2>/dev/null || echo no", as("2000:2000"))
	if err != nil {
		return err
	}
	if err := o.wrote("no\n"); err != nil {
		return fmt.Errorf("another user: %w", err)
	}
	if o, err = t.in(s, "cat /vol/file; stat -c %u:%g /vol/file"); err != nil {
		return err
	}
	return o.wrote("secret\n1000:1000\n")
}

func binds(t *trial) error {
	dir, err := os.MkdirTemp(t.env.Dir, "bind: with=odd,characters")
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "testfile"), []byte("first tube\n"), 0o644)); err != nil {
		return err
	}
	bind := func(readOnly bool) setup {
		return step(func(s *berth.StepSpec) {
			s.Mounts = []berth.Mount{
				{Source: dir, Target: "/mnt/not there", ReadOnly: readOnly},
				{Source: filepath.Join(dir, "testfile"), Target: "/mnt/file", ReadOnly: true},
			}
		})
	}
	o, err := t.sh("cat '/mnt/not there/testfile' /mnt/file; (echo x >'/mnt/not there/testfile') 2>/dev/null || (echo x >/mnt/file) 2>/dev/null || echo no", bind(true))
	if err != nil {
		return err
	}
	if err := o.wrote("first tube\nfirst tube\nno\n"); err != nil {
		return fmt.Errorf("read-only: %w", err)
	}
	if o, err = t.sh("echo written >'/mnt/not there/new'", bind(false)); err != nil {
		return err
	}
	if err := o.wrote(""); err != nil {
		return fmt.Errorf("to be written: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "new"))
	errs := []error{err, same("on the host", string(b), "written\n")}
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	_, err = s.Start(t.ctx, t.script("true", step(func(s *berth.StepSpec) {
		s.Mounts = []berth.Mount{{Source: filepath.Join(dir, "none"), Target: "/mnt"}}
	})))
	if err == nil {
		err = errors.New("a source that is not there was mounted")
	} else if errors.Is(err, berth.ErrNotFound) || errors.Is(err, berth.ErrInvalid) {
		err = nil
	}
	return errors.Join(append(errs, err)...)
}

func tmpfs(t *trial) error {
	o, err := t.sh("echo x >/scratch/file && cat /scratch/file; df -k /scratch | tail -1 | awk '{print $2}'; dd if=/dev/zero of=/scratch/big bs=1M count=20 2>/dev/null || echo full", step(func(s *berth.StepSpec) {
		s.Mounts = []berth.Mount{{Type: berth.MountTmpfs, Target: "/scratch", Size: 8 << 20}}
	}))
	if err != nil {
		return err
	}
	return o.wrote("x\n8192\nfull\n")
}

// nestedMounts names the deeper mount first.
func nestedMounts(t *trial) error {
	dir, err := os.MkdirTemp(t.env.Dir, "nested")
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "file"), []byte("inner\n"), 0o644)); err != nil {
		return err
	}
	o, err := t.sh("cat /vol/a/b/file; echo outer >/vol/a/outer; cat /vol/a/outer", shared, step(func(s *berth.StepSpec) {
		s.Mounts = []berth.Mount{{Source: dir, Target: "/vol/a/b", ReadOnly: true}, {Type: berth.MountTmpfs, Target: "/vol/a"}}
	}))
	if err != nil {
		return err
	}
	return o.wrote("inner\nouter\n")
}

func sharedMemory(t *trial) error {
	const size = "df -k /dev/shm | tail -1 | awk '{print $2}'; echo x >/dev/shm/file && cat /dev/shm/file"
	return scripts{
		{"by default", size, "65536\nx\n", nil},
		{"as asked", size, "16384\nx\n", step(func(s *berth.StepSpec) { s.ShmSize = 16 << 20 })},
	}.check(t)
}

func standardFiles(t *trial) error {
	return scripts{
		{"/dev", "for f in null zero full random urandom tty; do [ -c /dev/$f ] || echo no $f; done; head -c 4 /dev/zero | od -An -tx1; head -c 8 /dev/urandom | wc -c", " 00 00 00 00\n8\n", nil},
		{"links", "for f in fd stdin stdout stderr; do readlink /dev/$f; done; readlink -f /dev/fd >/dev/null && [ -e /dev/ptmx ] && echo ptmx", "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\nptmx\n", nil},
		{"/etc", "grep -c localhost /etc/hosts >/dev/null && [ -s /etc/hostname ] && echo etc", "etc\n", nil},
		{"hosts", "grep extra /etc/hosts", "10.1.2.3\textra\n", sandbox(func(s *berth.SandboxSpec) { s.Network.Hosts = []string{"extra:10.1.2.3"} })},
	}.check(t)
}

func archive(t *trial) error {
	s, c, err := t.start("mkdir -p /data/sub; echo one >/data/one; echo two >/data/sub/two; chmod 640 /data/one; ln -s /etc/passwd /data/link; ln -s / /data/root; echo vol >/vol/file", shared)
	if err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	a, ok := c.(berth.Archiver)
	if !ok {
		return errors.New("the container is no berth.Archiver")
	}
	got, err := t.archived(a, "/data")
	want := "data/ 755, data/link -> /etc/passwd, data/one 640 one, data/root -> /, data/sub/ 755, data/sub/two 644 two"
	errs := []error{err, same("the archive of a directory", got, want)}
	got, err = t.archived(a, "/data/sub/two")
	errs = append(errs, err, same("the archive of a file", got, "two 644 two"))
	got, err = t.archived(a, "/data/link")
	errs = append(errs, err, same("the archive of a link", got, "link -> /etc/passwd"))
	// The host's root has no /etc/enginetest; the container's has.
	got, err = t.archived(a, "/data/root/etc/enginetest")
	errs = append(errs, err, same("the archive through a link to the root", got, "enginetest 640 image"))
	_, err = a.Archive(t.ctx, "/none")
	errs = append(errs, kind("the archive of what is not there", err, berth.ErrNotFound))
	_, err = a.Archive(t.ctx, "/data/one/none")
	errs = append(errs, kind("the archive of what is below a file", err, berth.ErrNotFound))
	return errors.Join(append(errs, s.Close(t.ctx))...)
}

// archived is an archive in one line, sorted as it comes.
func (t *trial) archived(a berth.Archiver, path string) (string, error) {
	r, err := a.Archive(t.ctx, path)
	if err != nil {
		return "", fmt.Errorf("archive %s: %w", path, err)
	}
	defer r.Close()
	var parts []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("archive %s: %w", path, err)
		}
		part := fmt.Sprintf("%s %o", h.Name, h.Mode&0o7777)
		switch h.Typeflag {
		case tar.TypeDir: // its type says so: the slash is the archiver's to write
			part = fmt.Sprintf("%s/ %o", strings.TrimSuffix(h.Name, "/"), h.Mode&0o7777)
		case tar.TypeSymlink:
			part = h.Name + " -> " + h.Linkname
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			if err != nil {
				return "", err
			}
			part += " " + strings.TrimSpace(string(b))
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", "), nil
}
