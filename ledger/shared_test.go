package ledger

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestUsersWaitForEachOther(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name          string
		first, second uint32
	}{
		{"two users where root never was", alice, bob},
		{"root first", 0, alice},
		{"root second", alice, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(t)
			one, two := cfg, cfg
			one.Instance, two.Instance = "data directory one", "data directory two"
			a := start(t, c.first, order{Config: one, Task: "first", CPU: 1.5})
			a.say("lent")
			b := start(t, c.second, order{Config: two, Task: "second", CPU: 1})
			why := b.say("waiting")
			if want := "waiting for 1 CPU: 1.5 of 2 are lent to first (" + userName(c.first) + ")"; why != want {
				t.Errorf("it waits for %q, want %q", why, want)
			}
			b.silent("lent", 200*time.Millisecond)
			a.release()
			b.say("lent")
		})
	}
}

func TestEntriesFromBeforeRootCame(t *testing.T) {
	needRoot(t)
	cfg := config(t)
	a := start(t, alice, order{Config: cfg, Task: "early", CPU: 1})
	a.say("lent")
	r := start(t, 0, order{Config: cfg, Task: "roots", CPU: 1})
	r.say("lent")
	if _, err := os.Stat(cfg.Dirs.Shared); err != nil {
		t.Fatal(err)
	}
	b := start(t, alice, order{Config: cfg, Task: "late", CPU: 1})
	b.say("waiting")
	s, err := open(t, cfg).Snapshot(bg)
	if err != nil {
		t.Fatal(err)
	}
	var where []string
	for _, e := range append(s.Leases, s.Waiting...) {
		where = append(where, fmt.Sprint(e.Task, " ", e.Owner, " ", filepath.Dir(e.path) == cfg.Dirs.Shared))
	}
	if want := []string{"early 65534 false", "roots 0 true", "late 65534 true"}; !slices.Equal(where, want) {
		t.Errorf("entries are %q, want %q", where, want)
	}
	a.release()
	b.say("lent")
}

// patient makes everything but notification slow.
func patient(t *testing.T) Config {
	cfg := config(t)
	cfg.Poll, cfg.StallAfter = time.Minute, time.Hour
	return cfg
}

func TestKilledHolderFreesAtOnce(t *testing.T) {
	cfg := patient(t)
	a := start(t, 0, order{Config: cfg, Task: "a", CPU: 2})
	a.say("lent")
	b := start(t, 0, order{Config: cfg, Task: "b", CPU: 2})
	b.say("waiting")
	at := time.Now()
	a.kill()
	b.say("lent")
	if took := time.Since(at); took > 10*time.Second { // without notification, a minute
		t.Errorf("it took %v", took)
	}
}

func TestKilledWaiterLeavesTheLine(t *testing.T) {
	cfg := patient(t)
	a := start(t, 0, order{Config: cfg, Task: "a", CPU: 2})
	a.say("lent")
	b := start(t, 0, order{Config: cfg, Task: "b", CPU: 2})
	b.say("waiting")
	c := start(t, 0, order{Config: cfg, Task: "c", CPU: 1})
	if why := c.say("waiting"); !strings.HasSuffix(why, "; 1 task is before this one: b ("+userName(uint32(os.Getuid()))+")") {
		t.Errorf("it waits for %q", why)
	}
	b.kill()
	a.release()
	c.say("lent")
}

func TestNobodyOvertakes(t *testing.T) {
	cfg := config(t)
	a := start(t, 0, order{Config: cfg, Task: "a", CPU: 1})
	a.say("lent")
	b := start(t, 0, order{Config: cfg, Task: "b", CPU: 2})
	b.say("waiting")
	// There is room for c, but b was first.
	c := start(t, 0, order{Config: cfg, Task: "c", CPU: 1})
	if why := c.say("waiting"); !strings.HasPrefix(why, "waiting for its turn; 1 task is before this one: b") {
		t.Errorf("it waits for %q", why)
	}
	c.silent("lent", 300*time.Millisecond)
	now := start(t, 0, order{Config: cfg, Task: "d", CPU: 1, NoWait: true})
	if why := now.say("error"); !strings.Contains(why, "unavailable: waiting for its turn; 2 tasks are before this one: b") {
		t.Errorf("without waiting: %q", why)
	}
	a.release()
	b.say("lent")
	c.silent("lent", 200*time.Millisecond)
	b.release()
	c.say("lent")
}

func TestStoppedTicketIsPassedOverUntilItComesBack(t *testing.T) {
	cfg := config(t)
	cfg.StallAfter = 2 * time.Second
	a := start(t, 0, order{Config: cfg, Task: "a", CPU: 2})
	a.say("lent")
	b := start(t, 0, order{Config: cfg, Task: "b", CPU: 2})
	b.say("waiting")
	b.signal(syscall.SIGSTOP)
	c := start(t, 0, order{Config: cfg, Task: "c", CPU: 2})
	c.say("waiting")
	a.release()
	c.say("lent") // though b is before it
	b.signal(syscall.SIGCONT)
	time.Sleep(time.Second) // b gives a sign of life
	d := start(t, 0, order{Config: cfg, Task: "d", CPU: 2})
	if why := d.say("waiting"); !strings.Contains(why, "1 task is before this one: b") {
		t.Errorf("b has lost its place: %q", why)
	}
	c.release()
	b.say("lent")
	d.silent("lent", 200*time.Millisecond)
}

func TestTicketThatDoesNotClaimIsPassedOver(t *testing.T) {
	cfg := config(t)
	cfg.StallAfter = time.Second
	l := open(t, cfg)
	idle := &ticket{ledger: l, req: &Request{Task: "idle", CPU: 1}}
	var v view
	if _, err := l.ownDir(); err != nil {
		t.Fatal(err)
	}
	if err := idle.publish(&v); err != nil {
		t.Fatal(err)
	}
	defer idle.drop()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // it lives, and does nothing
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				_ = os.Chtimes(idle.entry.path, time.Now(), time.Now())
			}
		}
	}()
	at := time.Now()
	ls, err := l.Acquire(bg, Request{Task: "next", CPU: 2})
	close(stop)
	<-done
	if err != nil {
		t.Fatal(err)
	}
	ls.Release()
	if took := time.Since(at); took < cfg.StallAfter {
		t.Errorf("it waited for %v only", took)
	}
}

func TestThirtyInOrderOfArrival(t *testing.T) {
	cfg := config(t)
	log := newLog(t)
	full := start(t, 0, order{Config: cfg, Task: "full", CPU: 2})
	full.say("lent")
	var want []string
	var all []*proc
	for i := range 30 {
		task := fmt.Sprintf("t%02d", i)
		cpu := []float64{0.5, 2, 1, 1.5}[i%4]
		p := start(t, []uint32{0, alice, bob}[i%3], order{Config: cfg, Task: task, CPU: cpu, Log: log, Hold: 10 * time.Millisecond})
		p.say("waiting")
		want = append(want, task)
		all = append(all, p)
	}
	full.release()
	for _, p := range all {
		p.say("lent")
		_ = p.cmd.Wait()
	}
	got, most := readLog(t, log)
	// Tasks that fit together may write to the log in either order.
	for i, task := range got {
		if place := slices.Index(want, task); place < i-3 || place > i+3 {
			t.Errorf("%s was lent as number %d", task, i)
		}
	}
	if len(got) != 30 || most > 2 {
		t.Errorf("%d were lent; at most %g CPUs at once", len(got), most)
	}
}

// Whatever is asked, released and killed, never more is lent than there is, and nothing is lost.
func TestNeverLentTwice(t *testing.T) {
	cfg := config(t)
	log := newLog(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	var running []*proc
	for i := range 60 {
		var uid uint32
		if os.Geteuid() == 0 {
			uid = []uint32{0, alice, bob}[rnd.IntN(3)]
		}
		cpu := 0.25 * float64(1+rnd.IntN(8))
		running = append(running, start(t, uid, order{
			Config: cfg, Task: fmt.Sprintf("t%d", i), CPU: cpu, Log: log, Hold: time.Duration(rnd.IntN(30)) * time.Millisecond,
		}))
		time.Sleep(time.Duration(rnd.IntN(8)) * time.Millisecond)
		if rnd.IntN(3) == 0 {
			k := rnd.IntN(len(running))
			p := running[k]
			// In the log it has given back before it dies: what comes after may be lent to another.
			f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = fmt.Fprintf(f, "- %s killed\n", p.task)
			_ = f.Close()
			p.kill()
			running = slices.Delete(running, k, k+1)
		}
	}
	for _, p := range running {
		p.say("lent")
		_ = p.cmd.Wait()
	}
	if _, most := readLog(t, log); most > 2 {
		t.Errorf("%g CPUs were lent at once", most)
	}
	if s, err := open(t, cfg).Snapshot(bg); err != nil || len(s.Leases)+len(s.Waiting)+len(s.Ignored) != 0 {
		t.Errorf("left over: %+v (%v)", s, err)
	}
}

func newLog(t *testing.T) string {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for p := log; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return log
}

// readLog returns the tasks in the order in which they were lent, and the most CPUs that were lent at once.
func readLog(t *testing.T, log string) (tasks []string, most float64) {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	has := map[string]float64{}
	ended := map[string]bool{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var sign, task string
		var cpu float64
		_, _ = fmt.Sscan(sc.Text(), &sign, &task, &cpu)
		if sign == "-" {
			delete(has, task)
			ended[task] = true
			continue
		}
		tasks = append(tasks, task)
		if !ended[task] {
			has[task] = cpu
		}
		sum := 0.0
		for _, c := range has {
			sum += c
		}
		most = max(most, sum)
	}
	return tasks, most
}
