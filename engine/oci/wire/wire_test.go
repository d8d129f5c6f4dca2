package wire

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

// pair is both ends of a connection.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ac, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	bc, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ac.Close(), bc.Close() })
	return NewConn(ac), NewConn(bc)
}

// Messages come as they were sent, with what goes behind and beside them, one after another.
func TestMessages(t *testing.T) {
	a, b := pair(t)
	spec := json.RawMessage(`{ "a" : "` + strings.Repeat("x", 300_000) + `" }`)
	sent := []*Request{
		{Op: OpHello},
		{Op: OpStart, Sandbox: "s", Start: &Start{Step: berth.StepSpec{ID: "1"}, Spec: spec, Layers: []string{"/l"}}},
		{Op: OpStart, Start: &Start{Spec: json.RawMessage{}}},
		{Op: OpClose, Sandbox: "s"},
	}
	errs := make(chan error, 1)
	go func() {
		for _, r := range sent {
			if err := a.Send(r, os.Stdin); err != nil {
				errs <- err
				return
			}
		}
		errs <- nil
	}()
	for _, want := range sent {
		got := new(Request)
		files, err := b.Receive(got)
		if err != nil || len(files) != 1 {
			t.Fatal(err, files)
		}
		closeAll(files)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: came otherwise than it was sent", want.Op)
		}
	}
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

func TestTooLarge(t *testing.T) {
	a, b := pair(t)
	if err := a.Send(&Request{Start: &Start{Spec: make([]byte, maxMessage)}}); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("sent: %v", err)
	}
	for _, size := range []string{"-1", "99999999"} {
		body := `{"op":"start","start":{"oci":` + size + `}}`
		if _, err := a.c.Write(append([]byte{byte(len(body)), 0, 0, 0}, body...)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Receive(new(Request)); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("size %s: %v", size, err)
		}
	}
	body := `{"op":"start","start":{"oci":10}}`
	if _, err := a.c.Write(append([]byte{byte(len(body)), 0, 0, 0}, body+"short"...)); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(new(Request)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off: %v", err)
	}
}
