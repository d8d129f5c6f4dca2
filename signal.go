package berth

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// signals are the names of Linux's signals by their numbers, without SIG.
var signals = [...]string{
	"", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT",
	"CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
}

// signalAliases are their other names.
var signalAliases = map[string]string{"IOT": "ABRT", "CLD": "CHLD", "POLL": "IO"}

// The real-time signals that programs may use, as the C library and Docker count them.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// ParseSignal reads a signal of Linux, as images and Docker write it: a name in any case, with SIG or without (TERM, SIGUSR1,
// SIGRTMIN+3, RTMAX-1), or a number from 1 to 64. The error wraps ErrInvalid.
func ParseSignal(s string) (syscall.Signal, error) {
	if n, ok := signalNumber(s); ok {
		return syscall.Signal(n), nil
	}
	return 0, fmt.Errorf("signal %q: %w: it is a name (TERM, SIGTERM, SIGRTMIN+3) or a number from 1 to %d", s, ErrInvalid, sigRTMax)
}

func signalNumber(s string) (n int, ok bool) {
	if isDecimal(s) {
		n, err := strconv.Atoi(s)
		return n, err == nil && n >= 1 && n <= sigRTMax
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if other, ok := signalAliases[name]; ok {
		name = other
	}
	if n := slices.Index(signals[:], name); n > 0 {
		return n, true
	}
	if more, ok := strings.CutPrefix(name, "RTMIN"); ok {
		n, ok := offset(more, "+")
		return sigRTMin + n, ok
	}
	if less, ok := strings.CutPrefix(name, "RTMAX"); ok {
		n, ok := offset(less, "-")
		return sigRTMax - n, ok
	}
	return 0, false
}

// offset is the number after the sign in what follows the name of the first or last real-time signal; 0 where nothing does.
func offset(s, sign string) (n int, ok bool) {
	if s == "" {
		return 0, true
	}
	digits, ok := strings.CutPrefix(s, sign)
	if !ok || !isDecimal(digits) {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n <= sigRTMax-sigRTMin
}

// isDecimal reports whether s is digits, and nothing else.
func isDecimal(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
