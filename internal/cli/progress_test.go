package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// openTerminal makes a terminal of 40 rows and 100 columns.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

const layerA, layerB = "sha256:aaaaaaaaaaaaaaaa", "sha256:bbbbbbbbbbbbbbbb"

// aPull is what a pull of two layers reports.
func aPull() []berth.Progress {
	return []berth.Progress{
		{Phase: "resolve"},
		{Phase: "download", Layer: layerA, Total: 4 << 20},
		{Phase: "download", Layer: layerB, Total: 1 << 20},
		{Phase: "download", Layer: layerA, Done: 2 << 20, Total: 4 << 20},
		{Phase: "unpack", Layer: layerB, Done: 1 << 20, Total: 1 << 20},
		{Phase: "done", Layer: layerB, Done: 1 << 20, Total: 1 << 20},
		{Phase: "unpack", Layer: layerA, Done: 4 << 20, Total: 4 << 20},
		{Phase: "done", Layer: layerA, Done: 4 << 20, Total: 4 << 20},
		{Phase: "done"},
	}
}

func TestProgressOnATerminal(t *testing.T) {
	master, slave := openTerminal(t)
	p := (&app{err: slave}).newProgress("auto", false)
	for _, r := range aPull() {
		p.report("img", r)
		time.Sleep(150 * time.Millisecond) // it is drawn every 100 ms
	}
	p.close()
	_, _ = io.WriteString(slave, "\x04END")
	var out bytes.Buffer
	for buf := make([]byte, 4096); !bytes.Contains(out.Bytes(), []byte("END")); {
		n, err := master.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(buf[:n])
	}
	for _, want := range []string{"aaaaaaaaaaaa download", "bbbbbbbbbbbb unpack", "2.0 MiB / 4.0 MiB", "berth: pulled img: 5.0 MiB in "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in %q", want, out.String())
		}
	}
}

// Of what does not come it is said that it is waited for, again after longer and longer, and why.
func TestProgressOfNothing(t *testing.T) {
	now := time.Unix(0, 0)
	var out bytes.Buffer
	p := (&app{err: &out}).newProgress("auto", false)
	p.now = func() time.Time { return now }
	late := func(after time.Duration) {
		now = now.Add(after)
		p.late("img")
	}
	p.report("img", berth.Progress{Phase: "resolve"})
	late(10 * time.Second)
	p.report("img", berth.Progress{Phase: "retry", Why: "try 1 of 6: no byte came for 30s"})
	late(20 * time.Second)
	p.report("img", berth.Progress{Phase: "download", Layer: layerA, Total: 1 << 20})
	late(10 * time.Second)
	if w := p.waits["img"]; w.next != 2*waitFirst {
		t.Errorf("next after %s", w.next)
	}
	p.settle()
	late(time.Minute)
	p.report("img", berth.Progress{Phase: "done"})
	late(time.Minute)
	p.close()
	want := "berth: waiting for img: nothing has come for 10s\n" +
		"berth: waiting for img: nothing has come for 30s, trying again: try 1 of 6: no byte came for 30s\n" +
		"berth: pulling img\n" +
		"berth: waiting for img: nothing has come for 10s\n" +
		"berth: pulled img: 1.0 MiB in 70.0 s\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	quiet := (&app{err: &out}).newProgress("auto", true)
	quiet.report("img", berth.Progress{Phase: "resolve"})
	if len(quiet.waits) > 0 {
		t.Error("it waits for a word that nobody wants")
	}
}

func TestProgressInLines(t *testing.T) {
	now := time.Unix(0, 0)
	for _, c := range []struct {
		name, mode string
		quiet      bool
		want       string
	}{
		{"no terminal", "auto", false, "berth: pulling img\nberth: pulling img: 2.0 MiB of 5.0 MiB\nberth: pulling img: 3.0 MiB of 5.0 MiB\nberth: pulling img: 5.0 MiB of 5.0 MiB\nberth: pulled img: 5.0 MiB in 21.0 s\n"},
		{"quiet", "plain", true, ""},
		{"none", "none", false, ""},
	} {
		var out bytes.Buffer
		p := (&app{err: &out}).newProgress(c.mode, c.quiet)
		p.now = func() time.Time { return now }
		for _, r := range aPull() {
			p.report("img", r)
			now = now.Add(3 * time.Second)
		}
		p.report("here", berth.Progress{Phase: "resolve"})
		p.report("here", berth.Progress{Phase: "done"})
		p.close()
		if out.String() != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, out.String(), c.want)
		}
	}
}
