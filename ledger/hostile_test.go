package ledger

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// forge writes what it likes into the ledger, held as an entry is.
func forge(t *testing.T, l *Ledger, name string, data []byte) string {
	t.Helper()
	dir, err := l.ownDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := holdFile(f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatIsIgnored(t *testing.T) {
	l := open(t, config(t))
	good := Entry{ID: "t.x", Task: "t", Owner: l.id.hostUID, Boot: l.id.boot, Seq: 1, Lent: true, CPU: 2}
	line := func(edit func(*Entry)) []byte {
		e := good
		edit(&e)
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return append(b, '\n')
	}
	dir, err := l.ownDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, says string
		make       func() string
	}{
		{"another owner", "claims to be of uid 4242", func() string {
			return forge(t, l, "t.x", line(func(e *Entry) { e.Owner = 4242 }))
		}},
		{"another name", `calls itself "u.y"`, func() string {
			return forge(t, l, "t.x", line(func(e *Entry) { e.ID = "u.y" }))
		}},
		{"less than nothing", "make no sense", func() string {
			return forge(t, l, "t.x", line(func(e *Entry) { e.CPU = -5 }))
		}},
		{"the end of the order", "make no sense", func() string {
			return forge(t, l, "t.x", line(func(e *Entry) { e.Seq = 1 << 62 }))
		}},
		{"a device without a name", "invalid", func() string {
			return forge(t, l, "t.x", line(func(e *Entry) { e.Devices = []Device{{}} }))
		}},
		{"not JSON", "not an entry", func() string { return forge(t, l, "t.x", []byte("{{{\n")) }},
		{"too long", "size", func() string { return forge(t, l, "t.x", make([]byte, fileMax+1)) }},
		{"a strange name", "not an entry's name", func() string { return forge(t, l, "README", line(func(*Entry) {})) }},
		{"a FIFO", "not a file", func() string {
			path := filepath.Join(dir, "t.x")
			if err := syscall.Mkfifo(path, 0o666); err != nil {
				t.Fatal(err)
			}
			return path
		}},
		{"a symbolic link", "symbolic links", func() string {
			path := filepath.Join(dir, "t.x")
			if err := os.Symlink("/etc/passwd", path); err != nil {
				t.Fatal(err)
			}
			return path
		}},
		{"a directory", "not a file", func() string {
			path := filepath.Join(dir, "t.x")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			return path
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.make()
			defer os.Remove(path)
			s, err := l.Snapshot(bg)
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Leases)+len(s.Waiting) != 0 || len(s.Ignored) != 1 || s.Ignored[0].Path != path || !strings.Contains(s.Ignored[0].Reason, c.says) {
				t.Errorf("snapshot is %+v, and should ignore it because of %q", s, c.says)
			}
			ls, err := l.Acquire(bg, Request{Task: "mine", CPU: 2, NoWait: true})
			if err != nil {
				t.Fatal(err)
			}
			ls.Release()
		})
	}
	// The same way of writing it, without a lie, counts.
	forge(t, l, "t.x", line(func(*Entry) {}))
	_, err = l.Acquire(bg, Request{Task: "mine", CPU: 2, NoWait: true})
	isKind(t, err, berth.ErrUnavailable)
}

func TestHardLinkCountsOnce(t *testing.T) {
	l := open(t, config(t))
	ls, err := l.Acquire(bg, Request{Task: "a", CPU: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.Release()
	dir := filepath.Join(l.cfg.Dirs.PerUser, perUserPrefix+"evil")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(ls.entry.path, filepath.Join(dir, ls.ID())); err != nil {
		t.Fatal(err)
	}
	if s, err := l.Snapshot(bg); err != nil || s.Lent.CPU != 1 || len(s.Leases) != 1 {
		t.Errorf("snapshot is %+v (%v)", s, err)
	}
}

func TestLeasesEndWithTheBoot(t *testing.T) {
	l := open(t, config(t))
	before := open(t, l.cfg)
	before.id.boot = "00000000-1111-2222-3333-444444444444"
	old, err := before.Acquire(bg, Request{Task: "old", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Release()
	ls, err := l.Acquire(bg, Request{Task: "new", CPU: 2, NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ls.Release()
	if _, err := os.Stat(old.entry.path); !os.IsNotExist(err) {
		t.Errorf("the old entry was not swept: %v", err)
	}
}

func TestReaderKeepsNothingAlive(t *testing.T) {
	needRoot(t)
	cfg := config(t)
	a := start(t, alice, order{Config: cfg, Task: "a", CPU: 2})
	a.say("lent")
	l := open(t, cfg)
	s, err := l.Snapshot(bg)
	if err != nil || len(s.Leases) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	f, err := os.Open(s.Leases[0].path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: 1 << 20}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	a.kill()
	b := start(t, bob, order{Config: cfg, Task: "b", CPU: 2})
	b.say("lent")
}

func TestUsersCannotTouchOthersEntries(t *testing.T) {
	needRoot(t)
	for _, shared := range []bool{false, true} {
		cfg := config(t)
		if shared {
			start(t, 0, order{Config: cfg, Task: "root", CPU: 0.1}).say("lent")
		}
		a := start(t, alice, order{Config: cfg, Task: "a", CPU: 1})
		id := a.say("lent")
		b := start(t, bob, order{Config: cfg, Adopt: id})
		if e := b.say("error"); !strings.Contains(e, "not found") {
			t.Errorf("adoption by another user: %q", e)
		}
		s, err := open(t, cfg).Snapshot(bg)
		if err != nil {
			t.Fatal(err)
		}
		path := s.Leases[len(s.Leases)-1].path
		for _, script := range []string{"rm -f %s", "mv %[1]s %[1]s2", "echo >> %s", "rm -rf $(dirname %s)/*"} {
			c := start(t, bob, order{Shell: fmt.Sprintf(script, path)})
			_ = c.cmd.Wait()
			if after, err := open(t, cfg).Snapshot(bg); err != nil || len(after.Leases) != len(s.Leases) || after.Lent != s.Lent {
				t.Errorf("%q by another user left %+v (%v)", script, after, err)
			}
		}
	}
}

func TestLockThatIsHeldForEver(t *testing.T) {
	needRoot(t)
	cfg := config(t)
	cfg.LockTimeout = 300 * time.Millisecond
	l := open(t, cfg)
	full, err := l.Acquire(bg, Request{Task: "full", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	waits := start(t, alice, order{Config: cfg, Task: "waits", CPU: 1})
	waits.say("waiting")
	h := start(t, bob, order{FlockOf: cfg.Dirs.PerUser})
	h.say("lent")
	_, err = l.Acquire(bg, Request{Task: "t", CPU: 1})
	isKind(t, err, berth.ErrUnavailable)
	if want := fmt.Sprintf("process %d (%s, %s) holds its lock", h.cmd.Process.Pid, "exe", userName(bob)); !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not say %q", err, want)
	}
	full.Release() // does not block for long, and frees all the same
	if why := waits.say("waiting"); !strings.Contains(why, "holds its lock") {
		t.Errorf("the waiter waits for %q", why)
	}
	h.release()
	waits.say("lent")
}

func TestDirectoriesThatCannotBeTrusted(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name, says string
		make       func(path string) error
	}{
		{"another user's", "owned by uid 65533", func(path string) error {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			if err := os.Chown(path, bob, bob); err != nil {
				return err
			}
			return os.Chmod(path, 0o777|os.ModeSticky)
		}},
		{"not sticky", "its mode is 0777", func(path string) error {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			return os.Chmod(path, 0o777)
		}},
		{"a symbolic link", "not a directory", func(path string) error { return os.Symlink("/tmp", path) }},
		{"a file", "not a directory", func(path string) error { return os.WriteFile(path, nil, 0o666) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(t)
			if err := os.Mkdir(filepath.Dir(cfg.Dirs.Shared), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.make(cfg.Dirs.Shared); err != nil {
				t.Fatal(err)
			}
			_, err := open(t, cfg).Acquire(bg, Request{Task: "t", CPU: 1})
			isKind(t, err, berth.ErrDenied)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
		})
	}
}

func TestHalfWrittenLineIsPassedOver(t *testing.T) {
	for _, c := range []struct{ name, data, want string }{
		{"whole", "\n{\"task\":\"a\"}\n\n{\"task\":\"b\"}\n", "b"},
		{"cut off", "\n{\"task\":\"a\"}\n\n{\"task\":\"b\"", "a"},
		{"cut off, and gone on", "\n{\"task\":\"a\"}\n\n{\"ta\n{\"task\":\"c\"}\n", "c"},
		{"cut off, and gone on, cut off again", "\n{\"task\":\"a\"}\n\n{\"ta\n{\"task\":\"", "a"},
		{"nothing whole", "\n{\"ta", "unfinished"},
	} {
		e, err := lastEntry([]byte(c.data))
		got := e.Task
		if err != nil {
			got = "unfinished"
		}
		if got != c.want {
			t.Errorf("%s: %q (%v), want %q", c.name, got, err, c.want)
		}
	}
}

func FuzzLastEntry(f *testing.F) {
	f.Add([]byte("\n{\"id\":\"t.x\",\"task\":\"t\",\"uid\":0,\"seq\":1,\"cpu\":1e300}\n"))
	f.Add([]byte("\n{\"devices\":[{\"id\":\"g\",\"bytes\":-1}]}\n\n{"))
	l := &Ledger{}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := lastEntry(data)
		if err != nil {
			return
		}
		if l.checkEntry(&e, "t.x", 0) == nil && (e.CPU < 0 || e.CPU != e.CPU || e.Memory < 0 || e.Owner != 0 || e.Task != "t") {
			t.Errorf("believed: %+v", e)
		}
	})
}
