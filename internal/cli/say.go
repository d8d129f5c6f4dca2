package cli

import "fmt"

// say tells people something, on a line of its own on standard error.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.err, "berth: "+format+"\n", args...)
}
