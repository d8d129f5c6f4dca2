package store

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// The tests run this test binary again as other processes: order is what a child does.

const childEnv = "BERTH_STORE_TEST_CHILD"

type order struct {
	Path   string
	Submit int    // tasks, named Prefix and a number, each with one further event
	Prefix string //
	Close  bool   // at the end
	Claim  string // a task; it says "claimed" or "error …", and sleeps
}

func TestMain(m *testing.M) {
	if s := os.Getenv(childEnv); s != "" {
		if err := child(s); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(str string) error {
	var o order
	if err := json.Unmarshal([]byte(str), &o); err != nil {
		return err
	}
	s, err := Open(bg, o.Path, Options{})
	if err != nil {
		return err
	}
	for i := range o.Submit {
		id := fmt.Sprint(o.Prefix, i)
		if _, err := s.Submit(bg, Submission{Task: berth.Task{ID: id, Labels: map[string]string{"by": o.Prefix}}}); err != nil {
			return err
		}
		if _, err := s.Append(bg, Event{Task: id, Kind: "admitted", State: berth.Initializing}); err != nil {
			return err
		}
		fmt.Println("done", id)
	}
	if o.Close {
		return s.Close()
	}
	if o.Claim != "" {
		me, err := Self()
		if err != nil {
			return err
		}
		if err := s.Claim(bg, o.Claim, me); err != nil {
			return err
		}
		fmt.Println("claimed")
		time.Sleep(time.Hour)
	}
	return nil
}

// Closing a file drops all locks that the process has on it: neither opening a store twice, nor closing one
// of the two, may leave the other without, or the next process to close would take its log away.
func TestTwoStoresOfOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.db")
	a := openAt(t, path)
	submit(t, a, berth.Task{ID: "a"})
	b, err := Open(bg, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	submit(t, b, berth.Task{ID: "b"})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	cmd, line := start(t, order{Path: path, Submit: 1, Prefix: "c", Close: true})
	if l := line(); l != "done c0" {
		t.Fatal(l)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Errorf("the log was taken away from under an open store: %v", err)
	}
	submit(t, a, berth.Task{ID: "d"})
	if got := ids(t, openAt(t, path), Filter{}); got != "d c0 b a" {
		t.Errorf("tasks are %q", got)
	}
}

func TestAnotherUsersDatabase(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to run a process of another user")
	}
	path := filepath.Join(t.TempDir(), "berth.db")
	openAt(t, path)
	_, line := startAs(t, order{Path: path, Submit: 1, Prefix: "x"}, &syscall.Credential{Uid: 65534, Gid: 65534})
	if l := line(); !strings.HasPrefix(l, "error") || !strings.Contains(l, ": denied: ") {
		t.Errorf("it says %q", l)
	}
}

// start runs a child and returns a function that reads its next line; "" at its end.
func start(t *testing.T, o order) (*exec.Cmd, func() string) {
	t.Helper()
	return startAs(t, o, nil)
}

func startAs(t *testing.T, o order, user *syscall.Credential) (*exec.Cmd, func() string) {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(b))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	sc := bufio.NewScanner(out)
	return cmd, func() string {
		sc.Scan()
		return sc.Text()
	}
}

// Several processes make the database at once, write to it at once, and are killed.
func TestManyProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "berth.db")
	var said [4]int
	var cmds [4]*exec.Cmd
	done := make(chan int)
	for i := range cmds {
		cmd, line := start(t, order{Path: path, Submit: 60, Prefix: fmt.Sprint("p", i, "-")})
		cmds[i] = cmd
		go func() {
			for l := line(); l != ""; l = line() {
				if !strings.HasPrefix(l, "done ") {
					t.Errorf("child %d says %q", i, l)
					break
				}
				said[i]++
				if i == 3 && said[i] == 30 {
					_ = cmd.Process.Kill()
				}
			}
			done <- i
		}()
	}
	for range cmds {
		<-done
	}
	s := openAt(t, path)
	var ok string
	if err := s.db.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Errorf("integrity check: %s, %v", ok, err)
	}
	for i := range cmds {
		n, events := 0, 0
		for r, err := range s.List(bg, Filter{Labels: map[string]string{"by": fmt.Sprint("p", i, "-")}}) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			for range s.Events(bg, 0, r.ID) {
				events++
			}
			if r.State == berth.Queued {
				events++ // killed between its two events
			}
		}
		// The one that was killed had recorded at least what it said, and at most two beyond.
		if n < said[i] || n > said[i]+2 || events != 2*n || i < 3 && n != 60 {
			t.Errorf("child %d said %d; %d tasks with %d events are there", i, said[i], n, events)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
}

func TestOneDriver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.db")
	s := openAt(t, path)
	submit(t, s, berth.Task{ID: "a"})
	submit(t, s, berth.Task{ID: "b"})
	cmd, line := start(t, order{Path: path, Claim: "a"})
	if l := line(); l != "claimed" {
		t.Fatal(l)
	}
	_, line2 := start(t, order{Path: path, Claim: "a"})
	if l, want := line2(), fmt.Sprintf("error claim task a: conflict: process %d drives it", cmd.Process.Pid); l != want {
		t.Errorf("a second driver: %q, want %q", l, want)
	}
	stale := func() string {
		var ids []string
		for r, err := range s.Stale(bg) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, r.ID)
		}
		return strings.Join(ids, " ")
	}
	if got := stale(); got != "b" {
		t.Errorf("stale: %q, want b", got)
	}
	r, err := s.Get(bg, "a")
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if got := stale(); got != "a b" {
		t.Errorf("stale: %q, want a b", got)
	}
	me, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Claim(bg, "a", me); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever lost the claim changes nothing.
	_, err = s.Append(bg, Event{Task: "a", Kind: "late", State: berth.Initializing, By: &r.Driver})
	isKind(t, err, berth.ErrConflict)
	if _, err := s.Append(bg, Event{Task: "a", Kind: "mine", State: berth.Initializing, By: &me}); err != nil {
		t.Fatal(err)
	}
	if err := s.Yield(bg, "a", r.Driver); err != nil || stale() != "b" {
		t.Errorf("another yields: %v; stale: %s", err, stale())
	}
	if err := s.Yield(bg, "a", me); err != nil || stale() != "a b" {
		t.Errorf("yield: %v; stale: %s", err, stale())
	}
	isKind(t, s.Claim(bg, "none", me), berth.ErrNotFound)
}

func TestDriversOfAnotherBootAreDead(t *testing.T) {
	me, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	other := me
	other.Boot = "00000000-1111-2222-3333-444444444444"
	reused := me
	reused.Start++
	for _, c := range []struct {
		name string
		d    Driver
		want bool
	}{{"this process", me, true}, {"another boot", other, false}, {"another process of this id", reused, false}, {"nobody", Driver{}, false}} {
		if c.d.alive() != c.want {
			t.Errorf("%s: alive is %v", c.name, !c.want)
		}
	}
}

func TestWatchSeesOtherProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.db")
	s := openAt(t, path)
	submit(t, s, berth.Task{ID: "mine"})
	var got []string
	for e, err := range s.Watch(bg, 0, "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Task+" "+e.Kind)
		if len(got) == 1 {
			_, line := start(t, order{Path: path, Submit: 1, Prefix: "theirs"})
			if l := line(); l != "done theirs0" {
				t.Fatal(l)
			}
		}
		if len(got) == 3 {
			break
		}
	}
	if want := "mine submitted,theirs0 submitted,theirs0 admitted"; strings.Join(got, ",") != want {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to mount a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	s, err := Open(bg, filepath.Join(dir, "berth.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	submit(t, s, berth.Task{ID: "a"})
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = s.Append(bg, Event{Task: "a", Kind: "note", Data: json.RawMessage(`"` + strings.Repeat("x", 5000) + `"`)})
	}
	isKind(t, err, berth.ErrExhausted)
	if r, err := s.Get(bg, "a"); err != nil || r.State != berth.Queued {
		t.Errorf("the database cannot be read any more: %+v, %v", r, err)
	}
	_, err = Open(bg, filepath.Join(dir, "new", "berth.db"), Options{})
	isKind(t, err, berth.ErrExhausted)
	if left, err := filepath.Glob(filepath.Join(dir, "new", "*")); err != nil || len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}
