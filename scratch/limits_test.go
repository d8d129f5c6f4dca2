package scratch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
	"golang.org/x/sys/unix"
)

func TestSample(t *testing.T) {
	a := open(t, scratch.Config{
		Limit:   4 * mib,
		Volumes: []scratch.Volume{{Name: "v", Size: 1 * mib}, {Name: "free"}},
		Prefer:  []berth.DiskEnforcement{berth.DiskSampled},
	})
	if got := a.Enforcement(); got != berth.DiskSampled {
		t.Fatalf("enforcement %q", got)
	}
	look := func(want int) (out []scratch.Over) {
		most := 60 * time.Millisecond
		if want > 0 {
			most = 20 * time.Second
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), most, berth.ErrShutdown)
		defer cancel()
		ctx, enough := context.WithCancelCause(ctx)
		seen := map[string]bool{}
		err := a.Sample(ctx, 10*time.Millisecond, func(o scratch.Over) {
			if !seen[o.What] {
				out = append(out, o)
			}
			if seen[o.What] = true; len(seen) == want {
				enough(berth.ErrShutdown)
			}
		})
		if !errors.Is(err, berth.ErrShutdown) {
			t.Errorf("sampling ended with %v", err)
		}
		return out
	}
	if err := write(filepath.Join(volume(t, a, "free"), "f"), mib); err != nil {
		t.Fatal(err)
	}
	if got := look(0); len(got) != 0 {
		t.Errorf("over: %v", got)
	}
	if err := write(filepath.Join(volume(t, a, "v"), "f"), 2*mib); err != nil {
		t.Fatal(err)
	}
	got := look(1)
	if len(got) != 1 || got[0].What != "volume v" || got[0].Limit != mib || got[0].Used < 2*mib {
		t.Errorf("over: %v", got)
	}
	if err := write(filepath.Join(a.Dir(), "f"), 3*mib); err != nil {
		t.Fatal(err)
	}
	got = look(2)
	if len(got) != 2 || got[1].What != "disk limit" || got[1].Limit != 4*mib || got[1].Used < 6*mib || got[1].Used > 6*mib+200<<10 {
		t.Errorf("over: %v", got)
	}
	if which, limit, used, full := a.Full(); which != "volume v" || limit != mib || used < 2*mib || !full {
		t.Errorf("full: %s %d %d %v", which, limit, used, full)
	}
	if s := (scratch.Over{What: "disk limit", Limit: mib, Used: 3 * mib}).String(); s != "the disk limit of 1 MiB was passed by 2 MiB: 3 MiB are used" {
		t.Error(s)
	}
	if s := (scratch.Over{What: "volume v", Limit: mib, Used: mib + 1}).String(); s != "the volume v of 1 MiB was passed by 1 bytes: 1.0 MiB are used" {
		t.Error(s)
	}
	// The record survives whoever made the area.
	b, err := scratch.Reopen(t.Context(), filepath.Dir(a.Dir()), nil)
	if err != nil || b.Enforcement() != berth.DiskSampled || b.Dir() != a.Dir() || volume(t, b, "v") != volume(t, a, "v") {
		t.Errorf("%+v, %v", b, err)
	}
}

// A program often removes what it wrote when its disk is full, before it gives up.
func TestFullIsRemembered(t *testing.T) {
	needRoot(t)
	a := open(t, scratch.Config{Limit: 4 * mib, Prefer: byLoop})
	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = a.Sample(ctx, 5*time.Millisecond, func(o scratch.Over) { t.Errorf("a hard limit was passed: %v", o) })
	})
	f := filepath.Join(a.Dir(), "f")
	if err := write(f, 5*mib); !full(err) {
		t.Fatal(err)
	}
	if full := a.FullNow(); len(full) != 1 || full[0].What != "disk limit" || full[0].Limit != 4*mib {
		t.Errorf("full is %+v", full)
	}
	if err := a.Look(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(f); err != nil {
		t.Fatal(err)
	}
	if which, limit, used, full := a.Full(); which != "disk limit" || limit != 4*mib || used > mib || !full {
		t.Errorf("%q %d %d %v", which, limit, used, full)
	}
	if met := a.Met(began); len(met) != 1 || met[0].What != "disk limit" || met[0].Limit != 4*mib {
		t.Errorf("met %+v", met)
	}
	cancel()
	wg.Wait()
	if full := a.FullNow(); len(full) != 0 {
		t.Errorf("%v are full, and there is room", full)
	}
	if met := a.Met(time.Now()); len(met) != 0 {
		t.Errorf("met by what came later: %+v", met)
	}
}

// du counts what is there once, and comes to an end while the tree is moved about.
func TestUsage(t *testing.T) {
	a := open(t, scratch.Config{})
	d := a.Dir()
	if err := write(filepath.Join(d, "f"), mib); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Link(d+"/f", d+"/g"), os.Symlink("/usr", d+"/l"), unix.Mkfifo(d+"/p", 0o600), os.MkdirAll(d+"/x/y/z", 0o755)); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(d + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sparse.Truncate(1<<40), sparse.Close()); err != nil {
		t.Fatal(err)
	}
	used, err := a.Usage()
	if err != nil || used < mib || used > mib+64<<10 {
		t.Errorf("%d, %v", used, err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Rename(d+"/x/y", d+"/y")
				_ = os.Rename(d+"/y", d+"/x/y")
			}
		}
	})
	for range 200 {
		if used, err := a.Usage(); err == nil && (used < mib || used > mib+64<<10) {
			t.Errorf("%d, %v", used, err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name string
		dir  string
		cfg  scratch.Config
		kind error
		text string
	}{
		{"negative", dir + "/a", scratch.Config{Limit: -1}, berth.ErrInvalid, "a limit of -1 bytes"},
		{"volume name", dir + "/a", scratch.Config{Volumes: []scratch.Volume{{Name: "../x"}}}, berth.ErrInvalid, `"../x" cannot name a volume`},
		{"two volumes", dir + "/a", scratch.Config{Volumes: []scratch.Volume{{Name: "x"}, {Name: "x"}}}, berth.ErrInvalid, "two volumes x"},
		{"volume size", dir + "/a", scratch.Config{Volumes: []scratch.Volume{{Name: "x", Size: -2}}}, berth.ErrInvalid, "volume x of -2 bytes"},
		{"relative", "a", scratch.Config{}, berth.ErrInvalid, `"a" is no absolute path`},
		{"is there", dir, scratch.Config{}, berth.ErrConflict, "file exists"},
		{"no parent", dir + "/b/a", scratch.Config{}, berth.ErrNotFound, "no such file or directory"},
		{"too much", dir + "/a", scratch.Config{Limit: 1 << 60}, berth.ErrExhausted, "1EiB of disk were asked for, and the file system of " + dir + "/a has "},
		{"too large a volume", dir + "/a", scratch.Config{Volumes: []scratch.Volume{{Name: "x", Size: 1 << 60}}}, berth.ErrExhausted, "1EiB of disk were asked for"},
		{"no such way", dir + "/a", scratch.Config{Limit: mib, Prefer: []berth.DiskEnforcement{"magic"}}, berth.ErrInvalid, `no way to keep a disk limit is called "magic"`},
		{"no way at all", dir + "/a", scratch.Config{Limit: mib, Prefer: []berth.DiskEnforcement{}}, berth.ErrUnsupported, "its limits cannot be kept here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := scratch.Open(t.Context(), tt.dir, tt.cfg)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// More than is free is refused before a task starts, not when it writes; nothing is left.
func TestLoopTakesItsSpaceAtOnce(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	a, err := scratch.Open(t.Context(), dir+"/a", scratch.Config{Limit: 32 * mib, Prefer: byLoop})
	if err != nil {
		t.Fatal(err)
	}
	_, err = scratch.Open(t.Context(), dir+"/b", scratch.Config{Limit: 32 * mib})
	if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), "has not so much free") {
		t.Errorf("%v", err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// Without mkfs.ext4 limits are sampled, and the log says why.
func TestFallsBack(t *testing.T) {
	needRoot(t)
	var log bytes.Buffer
	a := open(t, scratch.Config{Limit: mib, Mkfs: "/nowhere/mkfs.ext4", Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if got := a.Enforcement(); got != berth.DiskSampled {
		t.Errorf("enforcement %q", got)
	}
	if s := log.String(); !strings.Contains(s, "only sampled") || !strings.Contains(s, "install e2fsprogs") {
		t.Errorf("log: %s", s)
	}
	left, err := os.ReadDir(filepath.Dir(a.Dir()))
	if err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
}

// Sizes that leave nothing for the rest are kept each by itself, and their sum is sampled. A volume as
// large as everything has no limit of its own.
func TestSizesBeyondTheLimit(t *testing.T) {
	needRoot(t)
	a := open(t, scratch.Config{Limit: 64 * mib, Volumes: []scratch.Volume{{Name: "a", Size: 40 * mib}, {Name: "b", Size: 40 * mib}}, Prefer: byLoop})
	if got := a.Enforcement(); got != berth.DiskSampled {
		t.Errorf("enforcement %q", got)
	}
	if err := write(filepath.Join(volume(t, a, "a"), "f"), 44*mib); !full(err) {
		t.Errorf("%v", err)
	}
	if err := write(filepath.Join(volume(t, a, "b"), "f"), 38*mib); err != nil {
		t.Errorf("%v", err)
	}
	var overs []scratch.Over
	ctx, cancel := context.WithCancel(t.Context())
	_ = a.Sample(ctx, time.Millisecond, func(o scratch.Over) { overs = append(overs, o); cancel() })
	if len(overs) != 1 || overs[0].What != "disk limit" || overs[0].Limit != 64*mib {
		t.Errorf("%v", overs)
	}
	b := open(t, scratch.Config{Limit: 32 * mib, Volumes: []scratch.Volume{{Name: "a", Size: 32 * mib}, {Name: "b", Size: 64 * mib}}, Prefer: byLoop})
	if got := b.Enforcement(); got != berth.DiskLoop {
		t.Errorf("enforcement %q", got)
	}
	if err := write(filepath.Join(volume(t, b, "a"), "f"), 20*mib); err != nil {
		t.Error(err)
	}
	if err := write(filepath.Join(volume(t, b, "b"), "f"), 20*mib); !full(err) {
		t.Errorf("%v", err)
	}
}

// However a program writes, what it filled looks full, through an overlay too.
func TestLoopIsFull(t *testing.T) {
	needRoot(t)
	for _, chunk := range []int{4 << 10, 64 << 10, mib, 8 * mib} {
		a := open(t, scratch.Config{Limit: 16 * mib, Prefer: byLoop})
		root := t.TempDir()
		if err := errors.Join(os.Mkdir(a.Dir()+"/upper", 0o755), os.Mkdir(a.Dir()+"/work", 0o755),
			unix.Mount("overlay", root, "overlay", 0, "lowerdir="+t.TempDir()+",upperdir="+a.Dir()+"/upper,workdir="+a.Dir()+"/work")); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(root + "/f")
		if err != nil {
			t.Fatal(err)
		}
		for buf := bytes.Repeat([]byte{1}, chunk); err == nil; {
			// Once is once: os.File would write the rest by itself.
			_, err = unix.Write(int(f.Fd()), buf)
		}
		if which, limit, used, ok := a.Full(); !full(err) || !ok || which != "disk limit" || limit != 16*mib || used < 16*mib-64<<10 {
			t.Errorf("by %d: %q of %d, %d used, %v, %v", chunk, which, limit, used, ok, err)
		}
		if err := errors.Join(f.Close(), unix.Unmount(root, 0)); err != nil {
			t.Error(err)
		}
	}
}

// Files too small to matter run out of blocks before they run out of inodes.
func TestLoopInodes(t *testing.T) {
	needRoot(t)
	a := open(t, scratch.Config{Limit: 8 * mib, Prefer: byLoop})
	n := 0
	var err error
	for ; err == nil && n < 3000; n++ {
		err = os.WriteFile(filepath.Join(a.Dir(), fmt.Sprint(n)), []byte("x"), 0o644)
	}
	if n < 8*mib/4096*95/100 || !full(err) {
		t.Errorf("%d files, %v", n, err)
	}
	if _, _, _, full := a.Full(); !full {
		t.Error("not full")
	}
}

// Many areas at once share the loop devices there are, and more are made.
func TestLoopAtOnce(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			a, err := scratch.Open(t.Context(), fmt.Sprintf("%s/%d", dir, i), scratch.Config{Limit: 2 * mib, Prefer: byLoop})
			if err != nil {
				t.Error(err)
				return
			}
			if err := write(filepath.Join(a.Dir(), "f"), mib); err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if strings.Contains(mounts(t), dir) {
		t.Error("a mount is left")
	}
}

// An area that was cut off while it was made is found and removed whole.
func TestReopenHalfMade(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "area")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(berth.ErrCanceled)
	if _, err := scratch.Open(ctx, dir, scratch.Config{Limit: mib, Prefer: byLoop}); !errors.Is(err, berth.ErrCanceled) {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(dir+"/scratch.json", []byte(`{"version":1,"parts":[{"name":"main","size":1048576,"way":"loop"}]}`), 0o600),
		os.WriteFile(dir+"/main.img", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	a, err := scratch.Reopen(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("left: %v", err)
	}
}

// Small limits are limits too; a file system cannot be smaller than 256 KiB.
func TestLoopSmall(t *testing.T) {
	needRoot(t)
	for _, size := range []int{1, 4096, 64 << 10, 300_000} {
		a := open(t, scratch.Config{Limit: int64(size), Prefer: byLoop})
		f := filepath.Join(a.Dir(), "f")
		if err := write(f, size*95/100); err != nil {
			t.Errorf("95%% of %d: %v", size, err)
		}
		if err := write(f, max(size, 256<<10)+32<<10); !full(err) {
			t.Errorf("well beyond %d: %v", size, err)
		}
	}
}

// Another mount namespace may hold an area still when it is found again: it is the same file system then.
func TestReopenWhileInUse(t *testing.T) {
	needRoot(t)
	a := open(t, scratch.Config{Limit: mib, Prefer: byLoop})
	sleep := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read _")
	in, err := sleep.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := sleep.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(filepath.Dir(a.Dir()), "main.img")
	device := scratch.DeviceOf(image)
	if err := errors.Join(os.WriteFile(a.Dir()+"/f", []byte("x"), 0o600), unix.Unmount(a.Dir(), 0)); err != nil {
		t.Fatal(err)
	}
	b, err := scratch.Reopen(t.Context(), filepath.Dir(a.Dir()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(b.Dir() + "/f"); err != nil || string(got) != "x" || device == "" || scratch.DeviceOf(image) != device {
		t.Errorf("%q on %s, then %s, %v", got, device, scratch.DeviceOf(image), err)
	}
	if err := errors.Join(in.Close(), sleep.Wait(), b.Close()); err != nil && !strings.Contains(err.Error(), "exit status 1") {
		t.Error(err)
	}
	if dev := scratch.DeviceOf(image); dev != "" {
		t.Errorf("%s is left", dev)
	}
}
