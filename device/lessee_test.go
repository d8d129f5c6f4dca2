package device

import (
	"context"
	"slices"
	"testing"

	"github.com/berth-project/berth/ledger"
)

type leases []ledger.Entry

func (l leases) Snapshot(context.Context) (ledger.Snapshot, error) {
	return ledger.Snapshot{Leases: l}, nil
}

// A user's berth that goes on to ask is passed over on what that user's tasks were lent, and on nothing else.
func TestWhoseMeter(t *testing.T) {
	p := NewPool(PoolConfig{Ledger: leases{
		{Owner: 1000, Devices: []ledger.Device{{ID: "GPU-0"}, {ID: "GPU-1", Bytes: 1}}},
		{Owner: 1001, Devices: []ledger.Device{{ID: "GPU-1", Bytes: 1}}},
	}})
	all, err := p.lessees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const none = 1 << 30 // a process that is no more
	for _, tt := range []struct {
		uuid string
		p    Process
		want bool
	}{
		{"GPU-0", Process{PID: none, UID: 1000, asks: true}, true},
		{"GPU-0", Process{PID: none, UID: 1000}, false},
		{"GPU-0", Process{PID: none, UID: 1001, asks: true}, false},
		{"GPU-1", Process{PID: none, UID: 1001, asks: true}, true},
		{"GPU-2", Process{PID: none, UID: 1000, asks: true}, false},
	} {
		if got := all[tt.uuid].have(tt.p); got != tt.want {
			t.Errorf("%s, %+v: %v", tt.uuid, tt.p, got)
		}
	}
}

// Who cannot see what others have open is told so of what it is lent.
func TestUnseen(t *testing.T) {
	units := []Unit{{Device: Device{Vendor: "amd", Index: 1}}, {Device: Device{Vendor: "nvidia"}, Slice: &Slice{Index: 2}}}
	for _, tt := range []struct {
		hidden  int
		request Request
		want    []string
	}{
		{0, Request{}, nil},
		{1, Request{}, []string{"processes of other users could not be looked at: whether they use amd 1, nvidia 0:2 none but root can tell"}},
		{7, Request{}, []string{"7 processes of other users could not be looked at: whether they use amd 1, nvidia 0:2 none but root can tell"}},
		{7, Request{AllowBusy: true}, nil},
	} {
		p := NewPool(PoolConfig{})
		p.foreign.hidden = tt.hidden
		if got := p.unseen([]Request{tt.request}, units); !slices.Equal(got, tt.want) {
			t.Errorf("%d, %+v: %q", tt.hidden, tt.request, got)
		}
	}
}
