package logfile_test

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/berth-project/berth/logfile"
	"golang.org/x/sys/unix"
)

// Cut ends a log whose pipe somebody holds open, with all that lies in the pipe.
func TestCut(t *testing.T) {
	for _, early := range []bool{false, true} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		r, held := os.NewFile(uintptr(p[0]), "r"), os.NewFile(uintptr(p[1]), "w")
		defer held.Close()
		dir := t.TempDir()
		w, err := logfile.Create(dir, "stdout", logfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := held.WriteString("text"); err != nil {
			t.Fatal(err)
		}
		if early {
			w.Cut()
		}
		ended := make(chan error, 1)
		go func() { ended <- w.Pump(r) }()
		if !early {
			time.Sleep(10 * time.Millisecond) // so that Pump waits for more
			w.Cut()
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("Pump goes on")
		}
		log, err := logfile.Open(dir, "stdout", logfile.From{})
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(log); string(text) != "text" || err != nil {
			t.Errorf("early %v: the log holds %q, %v", early, text, err)
		}
		_ = log.Close()
	}
}
