package docker_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/logfile"
	"golang.org/x/sys/unix"
)

// TestFullDataDirectory: what fills the disk of the data directory costs a step some of its log, and says so, but neither its
// exit nor its time; and the daemon is not asked for the same log again and again.
func TestFullDataDirectory(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		others bool // somebody else takes all that there is, and that becomes free
		said   string
	}{
		{"by the log itself", false, "were dropped to make room for its last"},
		{"by others", true, "no space left on device"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			var asked atomic.Int64
			h := newHanger(t, daemon(t).Host())
			h.answer = func(r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/logs") {
					asked.Add(1)
				}
			}
			e, img := newEngine(t, docker.Config{Host: h.host, Dir: dir})
			go1 := t.TempDir()
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
			if err != nil {
				t.Fatal(err)
			}
			c, err := s.Start(t.Context(), berth.StepSpec{
				ID: berth.NewID(), Image: img, Mounts: []berth.Mount{{Source: go1, Target: "/go"}},
				Command: []string{"sh", "-c", "echo first; while ! [ -e /go/on ]; do sleep 0.05; done; seq 1 1000000; sleep 3; echo last; exit 7"},
			})
			if err != nil {
				t.Fatal(err)
			}
			until(t, "it runs", func() bool { return logs(t, c, false) == "first\n" })
			stop := func() {}
			if row.others {
				stop = fillDisk(t, filepath.Join(dir, "fill"))
			}
			if err := os.WriteFile(filepath.Join(go1, "on"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			exit := wait(t, c)
			stop()
			if exit.Reason != berth.Exited || exit.Code != 7 || !strings.Contains(exit.Detail, row.said) {
				t.Errorf("exit %+v", exit)
			}
			if got := logs(t, c, false); !row.others && !strings.HasSuffix(got, "1000000\nlast\n") {
				t.Errorf("the log ends with %q", got[max(0, len(got)-100):])
			}
			if n := asked.Load(); n > 4 {
				t.Errorf("the daemon was asked for its log %d times", n)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if _, c := begin(t, e, img, "echo again"); !wait(t, c).OK() || logs(t, c, false) != "again\n" {
				t.Error("afterwards nothing can be run")
			}
		})
	}
}

// TestFileOfStreamOnFullDisk: a file of standard output that a full disk has cut short is told of, with where it ends.
func TestFileOfStreamOnFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e, img := newEngine(t, docker.Config{Dir: dir})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/v"}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Stdout: "/v/out", Command: []string{"sh", "-c", "seq 1 2000000; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	exit := wait(t, c)
	if exit.Reason != berth.Exited || exit.Code != 3 || !strings.HasPrefix(exit.Unfilled, "file /v/out of stdout: it ends after byte ") || !strings.HasSuffix(exit.Unfilled, "no space left on device") {
		t.Errorf("%+v", exit)
	}
	root, err := s.Volume(t.Context(), "/v")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if st, err := root.Stat("out"); err != nil || !strings.Contains(exit.Unfilled, fmt.Sprintf(" byte %d:", st.Size())) {
		t.Errorf("%q; it has %d bytes, %v", exit.Unfilled, st.Size(), err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// fillDisk takes every byte that there is, and that becomes free, until stop is called, which gives all back.
func fillDisk(t *testing.T, name string) (stop func()) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	full, end, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		first := true
		for b := make([]byte, 4096); ; {
			select {
			case <-end:
				return
			default:
			}
			if _, err := f.Write(b); err != nil {
				if first {
					first = false
					close(full)
				}
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
	<-full
	return func() {
		close(end)
		<-done
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// TestFullDaemonDisk: what a daemon drops of a log that berth follows, as its disk is full, is not missing without a word.
func TestFullDaemonDisk(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := ownDaemon(t, "--data-root", disk)
	cfg := docker.Config{Host: d.Host(), Dir: t.TempDir()}
	first, err := docker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, img := newEngine(t, docker.Config{Host: d.Host()})
	begun, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	id := berth.NewID()
	if _, err := begun.Start(t.Context(), berth.StepSpec{
		ID: id, Image: img, Command: []string{"sh", "-c", "i=0; while [ $i -lt 1200 ]; do printf '%01000d\\n' $i; i=$((i+1)); sleep 0.005; done; exit 3"},
	}); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, cfg)
	s, err := e.Attach(t.Context(), begun.ID())
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Container(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	had := len(logs(t, c, false))
	until(t, "it is followed", func() bool { return len(logs(t, c, false)) > had+20 })
	stop := fillDisk(t, filepath.Join(disk, "fill"))
	time.Sleep(2 * time.Second)
	stop()
	exit := wait(t, c)
	if got := strings.Count(logs(t, c, false), "\n"); exit.Code != 3 || got == 1200 || !strings.Contains(exit.Detail, "the disk of the daemon was full") {
		t.Errorf("exit %+v, %d lines", exit, got)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// ext4Disk mounts an ext4 file system of its own.
func ext4Disk(t *testing.T, size int64) string {
	t.Helper()
	dir, img := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	err := os.WriteFile(img, nil, 0o600)
	if err == nil {
		err = os.Truncate(img, size)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFullDaemonDiskExt4: ext4 gives some of its blocks to nobody, and counts them as free. What the daemon drops is told whether there is room
// again in time or not, and what it says of a log that it has written in part is told in its words.
func TestFullDaemonDiskExt4(t *testing.T) {
	t.Parallel()
	disk := ext4Disk(t, 128<<20)
	d := ownDaemon(t, "--data-root", disk)
	cfg := docker.Config{Host: d.Host(), Dir: t.TempDir()}
	first, err := docker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, img := newEngine(t, docker.Config{Host: d.Host()})
	ends := t.TempDir()
	begun, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name string
		code int
		lost bool
	}{{"before", 0, false}, {"zero", 0, true}, {"three", 3, true}, {"after", 0, true}}
	ids, all := map[string]string{}, map[string]berth.Container{}
	for _, step := range steps {
		ids[step.name] = berth.NewID()
		if _, err := begun.Start(t.Context(), berth.StepSpec{
			ID: ids[step.name], LogDir: filepath.Join(cfg.Dir, "logs-"+step.name), Image: img, Mounts: []berth.Mount{{Source: ends, Target: "/ends"}},
			Command: []string{"sh", "-c", fmt.Sprintf(
				"i=0; while ! [ -e /ends/%s ]; do i=$((i+1)); printf '%%01000d\\n' $i; sleep 0.005; done; echo $i > /ends/%[1]s; exit %d", step.name, step.code)},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, cfg)
	s, err := e.Attach(t.Context(), begun.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		c, err := s.Container(t.Context(), ids[step.name])
		if err != nil {
			t.Fatal(err)
		}
		all[step.name] = c
		had := len(logs(t, c, false))
		until(t, "it is followed", func() bool { return len(logs(t, c, false)) > had+20 })
	}
	end := func(i int) {
		step := steps[i]
		name := filepath.Join(ends, step.name)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		exit, got := wait(t, all[step.name]), logs(t, all[step.name], false)
		ix, err := logfile.ReadIndex(filepath.Join(cfg.Dir, "logs-"+step.name), "stdout")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Count(got, "\n")
		t.Logf("%s: %d of %s lines, gaps %v, exit %+v", step.name, lines, strings.TrimSpace(string(raw)), ix.Gaps, exit)
		told := strings.Contains(exit.Detail, "the disk of the daemon was full") && strings.Contains(exit.Detail, "may be missing of stdout after byte") && len(ix.Gaps) > 0
		if lost := strconv.Itoa(lines) != strings.TrimSpace(string(raw)); exit.Code != step.code || lost != step.lost || told != step.lost || !step.lost && exit.Detail != "" || strings.Contains(exit.Detail, "unknown stream") {
			t.Errorf("%s: missing %v, told %v, exit %+v", step.name, lost, told, exit)
		}
	}
	end(0)
	stop := fillDisk(t, filepath.Join(disk, "fill"))
	time.Sleep(time.Second)
	end(1)
	end(2)
	stop()
	time.Sleep(time.Second)
	end(3)
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRoomOfExt4: what root has left of an ext4 that is full for all others is room for the daemon.
func TestRoomOfExt4(t *testing.T) {
	t.Parallel()
	disk := ext4Disk(t, 64<<20)
	const fullAt = 64 << 10
	room := func() (root, others int64) {
		root, err := docker.RoomOf(disk, true)
		if err != nil {
			t.Fatal(err)
		}
		others, err = docker.RoomOf(disk, false)
		if err != nil {
			t.Fatal(err)
		}
		return root, others
	}
	if root, others := room(); root <= fullAt || others <= fullAt {
		t.Errorf("of an empty one root has %d, others %d", root, others)
	}
	f, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for b := make([]byte, 64<<10); ; {
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, others := room(); others == 0 {
			break
		}
	}
	if root, _ := room(); root <= 1<<20 {
		t.Errorf("when others have none root has %d", root)
	}
	stop := fillDisk(t, filepath.Join(disk, "rest"))
	root, others := room()
	stop()
	if root > fullAt || others != 0 {
		t.Errorf("of a full one root has %d, others %d", root, others)
	}
}

// TestTornDaemonLog: what the daemon says of a log that it cannot read is told in its words, with a mark, and not as a fault of the stream.
func TestTornDaemonLog(t *testing.T) {
	t.Parallel()
	root, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	d := ownDaemon(t, "--data-root", root)
	cfg := docker.Config{Host: d.Host(), Dir: t.TempDir()}
	first, err := docker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, img := newEngine(t, docker.Config{Host: d.Host()})
	begun, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	id, dir, on := berth.NewID(), filepath.Join(cfg.Dir, "logs"), t.TempDir()
	if _, err := begun.Start(t.Context(), berth.StepSpec{
		ID: id, LogDir: dir, Image: img, Mounts: []berth.Mount{{Source: on, Target: "/go"}},
		Command: []string{"sh", "-c", "echo one; while ! [ -e /go/on ]; do sleep 0.05; done; echo two; sleep 8; exit 3"}, // it is read again meanwhile
	}); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, cfg)
	s, err := e.Attach(t.Context(), begun.ID())
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Container(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "it is followed", func() bool { return logs(t, c, false) == "one\n" })
	files, err := filepath.Glob(filepath.Join(root, "containers/*/local-logs/container.log"))
	if err != nil || len(files) != 1 {
		t.Fatalf("logs of the daemon: %v, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\x00\x00\x00\x20\x0a\x06stdout"); err != nil { // a message of 32 bytes, cut
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), os.WriteFile(filepath.Join(on, "on"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	exit := wait(t, c)
	ix, err := logfile.ReadIndex(dir, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if !strings.HasPrefix(exit.Runtime, "docker 20.") {
		t.Skip("written for a dockerd that says when it cannot read a log: newer ones end it without a word")
	}
	if exit.Reason != berth.Exited || exit.Code != 3 || !slices.Equal(ix.Gaps, []int64{4}) || !strings.Contains(exit.Detail, "may be missing of stdout after byte 4") ||
		strings.Count(exit.Detail, "the daemon could not read its log on (") != 1 || strings.Contains(exit.Detail, "stream 3") || strings.Contains(exit.Detail, "disk") {
		t.Errorf("exit %+v, gaps %v", exit, ix.Gaps)
	}
}
