package ledger

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

func TestDevices(t *testing.T) {
	const gib = 1 << 30
	whole := func(id string) Device { return Device{ID: id} }
	share := func(id string, bytes int64) Device { return Device{ID: id, Bytes: bytes * gib, Total: 10 * gib} }
	for _, c := range []struct {
		name  string
		lent  [][]Device
		wants []Device
		fits  bool
	}{
		{"a free one", nil, []Device{whole("g0")}, true},
		{"a lent one", [][]Device{{whole("g0")}}, []Device{whole("g0")}, false},
		{"another", [][]Device{{whole("g0")}}, []Device{whole("g1")}, true},
		{"two, of which one is lent", [][]Device{{whole("g0")}}, []Device{whole("g0"), whole("g1")}, false},
		{"a share beside a share", [][]Device{{share("g0", 4)}}, []Device{share("g0", 6)}, true},
		{"a share too large", [][]Device{{share("g0", 4)}}, []Device{share("g0", 7)}, false},
		{"a share beside two", [][]Device{{share("g0", 4)}, {share("g0", 4)}}, []Device{share("g0", 3)}, false},
		{"a share of a lent one", [][]Device{{whole("g0")}}, []Device{share("g0", 1)}, false},
		{"the whole of a shared one", [][]Device{{share("g0", 1)}}, []Device{whole("g0")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := open(t, config(t))
			for i, d := range c.lent {
				ls, err := l.Acquire(bg, Request{Task: fmt.Sprint("t", i), Devices: d})
				if err != nil {
					t.Fatal(err)
				}
				defer ls.Release()
			}
			// Another pool has the same devices.
			cfg := l.cfg
			cfg.Capacity.Pool = "cpus 3"
			ls, err := open(t, cfg).Acquire(bg, Request{Task: "t", Devices: c.wants, NoWait: true})
			defer ls.Release()
			if c.fits {
				if err != nil || !reflect.DeepEqual(ls.Devices(), c.wants) {
					t.Errorf("lent %v (%v)", ls.Devices(), err)
				}
				return
			}
			isKind(t, err, berth.ErrUnavailable)
			if !strings.Contains(err.Error(), "waiting for device g0: lent to t0") {
				t.Errorf("error is %q", err)
			}
		})
	}
}

func TestChosenDevices(t *testing.T) {
	l := open(t, config(t))
	// one picks the first of two devices that nobody has.
	one := func(taken map[string]Taken) ([]Device, error) {
		for _, id := range []string{"g0", "g1"} {
			if _, ok := taken[id]; !ok {
				return []Device{{ID: id}}, nil
			}
		}
		return nil, fmt.Errorf("waiting for 1 GPU: g0 is lent to %s%.0w", taken["g0"].Tasks[0], berth.ErrUnavailable)
	}
	a, err := l.Acquire(bg, Request{Task: "a", Choose: one})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Acquire(bg, Request{Task: "b", Choose: one, CPU: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if got := slices.Concat(a.Devices(), b.Devices()); !reflect.DeepEqual(got, []Device{{ID: "g0"}, {ID: "g1"}}) {
		t.Errorf("lent %v", got)
	}
	var whys []string
	done := make(chan error, 1)
	waiting := make(chan struct{}, 100)
	go func() {
		c, err := l.Acquire(bg, Request{Task: "c", Choose: one, Waiting: func(why string) {
			whys = append(whys, why)
			waiting <- struct{}{}
		}})
		if err == nil && !reflect.DeepEqual(c.Devices(), []Device{{ID: "g0"}}) {
			err = fmt.Errorf("lent %v", c.Devices())
		}
		c.Release()
		done <- err
	}()
	<-waiting
	a.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := []string{"waiting for 1 GPU: g0 is lent to a"}; !reflect.DeepEqual(whys, want) {
		t.Errorf("it waited for %q, want %q", whys, want)
	}
	no := errors.New("no such GPU")
	if _, err := l.Acquire(bg, Request{Task: "d", Choose: func(map[string]Taken) ([]Device, error) { return nil, no }}); !errors.Is(err, no) {
		t.Errorf("error is %v", err)
	}
	// A chooser that is wrong lends nothing twice.
	_, err = l.Acquire(bg, Request{Task: "e", NoWait: true, Choose: func(map[string]Taken) ([]Device, error) { return []Device{{ID: "g1"}}, nil }})
	isKind(t, err, berth.ErrUnavailable)
}

// Who waits for a device keeps nobody waiting who wants none, unless that would take away what it wants beside.
func TestWaitingForDeviceIsPassed(t *testing.T) {
	cfg := config(t)
	cfg.Capacity = Capacity{CPU: 2}
	l := open(t, cfg)
	holder, err := l.Acquire(bg, Request{Task: "holder", Devices: []Device{{ID: "g0"}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(bg)
	waits, done := make(chan string, 10), make(chan error, 1)
	go func() {
		lease, err := l.Acquire(ctx, Request{Task: "waiter", CPU: 1, Devices: []Device{{ID: "g0"}}, Waiting: func(why string) { waits <- why }})
		lease.Release()
		done <- err
	}()
	<-waits
	one := Request{CPU: 1, NoWait: true}
	one.Task = "first"
	first, err := l.Acquire(bg, one)
	if err != nil {
		t.Fatalf("a task without devices waits for one that waits for a device: %v", err)
	}
	defer first.Release()
	one.Task = "second"
	_, err = l.Acquire(bg, one)
	isKind(t, err, berth.ErrUnavailable)
	if err == nil || !strings.Contains(err.Error(), "1 task is before this one: waiter") {
		t.Errorf("error is %v", err)
	}
	// Another that wants a device waits its turn.
	_, err = l.Acquire(bg, Request{Task: "third", Devices: []Device{{ID: "g1"}}, NoWait: true})
	isKind(t, err, berth.ErrUnavailable)
	holder.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	cancel()
}
