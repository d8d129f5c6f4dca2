package berth

import (
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"TERM": 15, "SIGTERM": 15, "sigterm": 15, "Usr1": 10, "9": 9, "015": 15, "64": 64, "CLD": 17, "SIGPOLL": 29, "IOT": 6,
		"RTMIN": 34, "SIGRTMIN+3": 37, "rtmin+0": 34, "RTMIN+30": 64, "SIGRTMAX": 64, "RTMAX-14": 50, "RTMAX-30": 34,
	} {
		if got, err := ParseSignal(s); got != want || err != nil {
			t.Errorf("%q is %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "SIG", "0", "65", "-1", "+9", "1.5", " TERM", "TERM ", "SIGSIGTERM", "NOSUCH", "RTMIN-1", "RTMIN+31", "RTMIN+", "RTMIN3", "RTMIN+-1", "RTMAX+1", "RTMAX-31", "99999999999999999999"} {
		if got, err := ParseSignal(s); err == nil || !errors.Is(err, ErrInvalid) {
			t.Errorf("%q is %d, %v; want ErrInvalid", s, got, err)
		}
	}
	for n := 1; n < 32; n++ { // as the kernel's headers have them
		if name := unix.SignalName(syscall.Signal(n)); name != "" {
			if got, err := ParseSignal(name); int(got) != n || err != nil {
				t.Errorf("%s is %d, %v; want %d", name, got, err, n)
			}
		}
	}
}
