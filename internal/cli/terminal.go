package cli

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/berth-project/berth"
)

// terminal is the terminal that a stream is; nil where it is none.
func terminal(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// withTerminal calls do while berth's terminal, where the task is to have one, passes every key on, and sends
// the terminal's sizes, the first at once.
func (a *app) withTerminal(tty, interactive bool, do func(sizes <-chan berth.Size) error) error {
	if !tty {
		return do(nil)
	}
	in := terminal(a.in)
	if interactive && in == nil {
		return invalid("--interactive and --tty: berth's standard input is no terminal; leave out --tty")
	}
	screen := terminal(a.out)
	if screen == nil {
		screen = in
	}
	if screen == nil {
		return do(nil) // there is nobody whose size would matter
	}
	if interactive {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return fmt.Errorf("set the terminal: %w", err)
		}
		defer func() { _ = term.Restore(int(in.Fd()), before) }()
	}
	sizes := make(chan berth.Size, 1)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if cols, rows, err := term.GetSize(int(screen.Fd())); err == nil {
				select {
				case <-sizes: // nobody has seen it yet, and it is old
				default:
				}
				sizes <- berth.Size{Rows: uint16(rows), Cols: uint16(cols)} // a terminal's size fits
			}
			select {
			case <-stop:
				return
			case <-changed:
			}
		}
	}()
	defer func() {
		signal.Stop(changed)
		close(stop)
		<-done
	}()
	return do(sizes)
}
