package scratch_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/vmtest"
	"github.com/berth-project/berth/scratch"
)

var byQuota = []berth.DiskEnforcement{berth.DiskQuota}

// Project quotas need a kernel that was built with them, which this host's may not be: the tests run in a
// virtual machine.
func TestQuota(t *testing.T) {
	if os.Getenv("BERTH_TEST_QUOTA") == "" {
		files := map[string]string{"/bin/scratch.test": vmtest.Build(t, ".")}
		for _, name := range []string{"mkfs.ext4", "mkfs.xfs"} {
			program(t, files, name)
		}
		r := vmtest.Run(t, vmtest.Config{
			Files:    files,
			Modules:  []string{"crc32c_generic", "crc32c_intel", "ext4", "xfs", "quota_v2", "loop", "overlay"},
			Env:      []string{"BERTH_TEST_QUOTA=1"},
			Commands: [][]string{{"scratch.test", "-test.v", "-test.run=^TestQuota$"}},
		})
		t.Logf("%s", r.Output)
		if r.Status[0] != 0 {
			t.Fail()
		}
		return
	}
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			dir := mountWithQuotas(t, fs, "prjquota")
			t.Run("limits", func(t *testing.T) { quotaLimits(t, dir) })
			t.Run("files", func(t *testing.T) { quotaFiles(t, dir) })
			t.Run("thin", func(t *testing.T) { quotaThin(t, dir) })
			t.Run("overlay", func(t *testing.T) { quotaOverlay(t, dir) })
			t.Run("close", func(t *testing.T) { quotaClose(t, dir) })
		})
		t.Run(fs+" that only counts", func(t *testing.T) {
			dir := mountWithQuotas(t, fs, map[string]string{"ext4": "noquota", "xfs": "pqnoenforce"}[fs])
			_, err := scratch.Open(t.Context(), dir+"/a", scratch.Config{Limit: mib, Prefer: byQuota})
			if !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "is not mounted with prjquota") {
				t.Errorf("%v", err)
			}
		})
	}
}

// program adds a program of this host, with the libraries that it needs.
func program(t *testing.T, files map[string]string, name string) {
	t.Helper()
	path := "/usr/sbin/" + name
	out, err := exec.CommandContext(t.Context(), "ldd", path).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", path, err)
	}
	files["/bin/"+name] = path
	for f := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(f, "/") {
			files[f] = f
		}
	}
}

// mountWithQuotas makes a file system that can have project quotas.
func mountWithQuotas(t *testing.T, fs, option string) string {
	t.Helper()
	base := t.TempDir()
	image, dir := base+"/image", base+"/mnt"
	mkfs := map[string]string{
		"ext4": "mkfs.ext4 -q -F -O project,quota -E quotatype=prjquota " + image,
		"xfs":  "mkfs.xfs -q " + image,
	}[fs]
	script := fmt.Sprintf("truncate -s 400M %s && mkdir %s && %s && mount -t %s -o loop,%s %s %s", image, dir, mkfs, fs, option, image, dir)
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// asTask runs fn without the capability that no task has and that quotas do not hold.
func asTask(t *testing.T, fn func() error) error {
	t.Helper()
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&head, &data[0])
		data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		if err == nil {
			err = unix.Capset(&head, &data[0])
		}
		if err == nil {
			err = fn()
		}
		errs <- err
	}()
	return <-errs
}

func quotaLimits(t *testing.T, dir string) {
	a, err := scratch.Open(t.Context(), dir+"/area", scratch.Config{Limit: 32 * mib, Volumes: []scratch.Volume{{Name: "sized", Size: 8 * mib}, {Name: "free"}}, Prefer: byQuota})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}()
	if got := a.Enforcement(); got != berth.DiskQuota {
		t.Errorf("enforcement %q", got)
	}
	fits := func(path string, size int) {
		t.Helper()
		if err := asTask(t, func() error { return write(path, size*95/100) }); err != nil {
			t.Errorf("95%% of %d: %v", size, err)
		}
		if which, _, _, full := a.Full(); full {
			t.Errorf("%s is full", which)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := asTask(t, func() error { return write(path, size*105/100) }); !full(err) {
			t.Errorf("105%% of %d: %v", size, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Size() < int64(size*98/100) {
			t.Errorf("only %d of %d fitted, %v", info.Size(), size, err)
		}
	}
	fits(filepath.Join(volume(t, a, "sized"), "f"), 8*mib)
	if which, limit, used, full := a.Full(); which != "volume sized" || limit != 8*mib || used < 7*mib || !full {
		t.Errorf("full: %q %d %d %v", which, limit, used, full)
	}
	if err := os.Remove(filepath.Join(volume(t, a, "sized"), "f")); err != nil {
		t.Fatal(err)
	}
	fits(filepath.Join(volume(t, a, "free"), "f"), 24*mib)
	if which, limit, _, full := a.Full(); which != "disk limit (less 8MiB set aside for sized volumes)" || limit != 24*mib || !full {
		t.Errorf("full: %q %d %v", which, limit, full)
	}
	if err := asTask(t, func() error { return write(filepath.Join(a.Dir(), "g"), mib) }); !full(err) {
		t.Errorf("beyond the sum: %v", err)
	}
	if used, err := a.Usage(); err != nil || used < 23*mib || used > 32*mib {
		t.Errorf("usage %d, %v", used, err)
	}
	// Others are not held.
	if err := asTask(t, func() error { return write(dir+"/other", mib) }); err != nil {
		t.Error(err)
	}
}

// Empty files take no blocks, but inodes, which the file system has for all tasks together.
func quotaFiles(t *testing.T, dir string) {
	start := time.Now()
	a, err := scratch.Open(t.Context(), dir+"/area", scratch.Config{Limit: 24 * mib, Prefer: byQuota})
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	err = asTask(t, func() error {
		for ; made < 10_000; made++ {
			f, err := os.Create(fmt.Sprintf("%s/%d", a.Dir(), made))
			if err != nil {
				return err
			}
			f.Close()
		}
		return nil
	})
	if which, limit, _, is := a.Full(); !full(err) || made < 6000 || made >= 6144 || which != "number of files in the disk limit" || limit != 24*mib || !is {
		t.Errorf("%d files, %v; full: %q %d %v", made, err, which, limit, is)
	}
	// It was full of files also where they are gone again, as programs leave it that give up.
	if err := a.Look(); err != nil {
		t.Fatal(err)
	}
	for i := range made {
		_ = os.Remove(fmt.Sprintf("%s/%d", a.Dir(), i))
	}
	met := a.Met(start)
	if now := a.FullNow(); len(now) != 0 || len(met) != 1 || met[0].What != "number of files in the disk limit" {
		t.Errorf("met %+v, full now %+v", met, now)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// Who has no quota, but could, is not asked for more room than one takes.
func quotaThin(t *testing.T, dir string) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	cfg := scratch.Config{Limit: int64(st.Blocks)*st.Bsize - mib, Prefer: []berth.DiskEnforcement{berth.DiskLoop, berth.DiskSampled}}
	if _, err := scratch.Open(t.Context(), dir+"/area", cfg); !errors.Is(err, berth.ErrExhausted) {
		t.Error(err)
	}
	cfg.Thin = true
	a, err := scratch.Open(t.Context(), dir+"/area", cfg)
	if err != nil {
		t.Fatal(err)
	}
	if way := a.Enforcement(); way != berth.DiskSampled {
		t.Error(way)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	cfg.Limit = 16 * mib
	if a, err = scratch.Open(t.Context(), dir+"/area", cfg); err != nil {
		t.Fatal(err)
	}
	if way := a.Enforcement(); way != berth.DiskLoop {
		t.Error(way)
	}
	cfg.Prefer = cfg.Prefer[:1]
	cfg.Limit = int64(st.Blocks)*st.Bsize - mib
	if _, err := scratch.Open(t.Context(), dir+"/alone", cfg); !errors.Is(err, berth.ErrExhausted) {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// An overlay is held too, although it writes with the rights of whoever mounted it.
func quotaOverlay(t *testing.T, dir string) {
	a, err := scratch.Open(t.Context(), dir+"/area", scratch.Config{Limit: 16 * mib, Prefer: byQuota})
	if err != nil {
		t.Fatal(err)
	}
	lower, root := t.TempDir(), t.TempDir()
	for _, d := range []string{"upper-0", "work-0"} {
		if err := os.Mkdir(filepath.Join(a.Dir(), d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(lower+"/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir="+lower+",upperdir="+a.Dir()+"/upper-0,workdir="+a.Dir()+"/work-0"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(root+"/f", root+"/g"), os.Mkdir(root+"/d", 0o755), os.Rename(root+"/g", root+"/d/g")); err != nil {
		t.Error(err)
	}
	if err := write(root+"/d/h", 18*mib); !full(err) {
		t.Errorf("%v", err)
	}
	if err := errors.Join(unix.Unmount(root, 0), a.Close()); err != nil {
		t.Error(err)
	}
}

// A project id is free again when its area is gone, also when another process closes it.
func quotaClose(t *testing.T, dir string) {
	ids := map[uint32]bool{}
	var areas []string
	for i := range 5 {
		p := fmt.Sprintf("%s/area%d", dir, i)
		if _, err := scratch.Open(t.Context(), p, scratch.Config{Limit: mib, Prefer: byQuota}); err != nil {
			t.Fatal(err)
		}
		areas = append(areas, p)
		id := scratch.ProjectOf(p)
		if id == 0 || ids[id] {
			t.Errorf("project %d again", id)
		}
		ids[id] = true
		if _, limit, err := scratch.QuotaOf(dir, id); err != nil || limit != mib {
			t.Errorf("limit %d, %v", limit, err)
		}
	}
	for _, p := range areas {
		a, err := scratch.Reopen(t.Context(), p, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Enforcement(); got != berth.DiskQuota {
			t.Errorf("enforcement %q", got)
		}
		if err := errors.Join(write(filepath.Join(a.Dir(), "f"), mib/2), a.Close()); err != nil {
			t.Error(err)
		}
	}
	for id := range ids {
		// xfs frees the blocks of a removed file a little later.
		for range 100 {
			if used, _, _ := scratch.QuotaOf(dir, id); used == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if used, limit, err := scratch.QuotaOf(dir, id); used != 0 || limit != 0 || err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
			t.Errorf("project %d: %d used, limit %d, %v", id, used, limit, err)
		}
	}
}

func init() { //nolint:gochecknoinits // this alone runs on the main thread, which stands for the process in /proc: no test is to change it for good
	runtime.LockOSThread()
}
