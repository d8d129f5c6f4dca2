package enginetest

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/berth-project/berth"
)

func terminal(t *trial) error {
	// Podman's conmon sets a size some time after the service has answered.
	_, c, err := t.start(`[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty; echo err >&2; echo ready; read x; echo "got $x"
		i=0; until [ "$(stty size 2>&1)" = "33 77" ] || [ $i = 100 ]; do i=$((i+1)); sleep 0.1; done; stty size`,
		step(func(s *berth.StepSpec) { s.TTY, s.OpenStdin = true, true }))
	if err != nil {
		return err
	}
	r, ok := c.(berth.Terminal)
	if !ok {
		return errors.New("the container is no berth.Terminal")
	}
	if err := t.until(c, "the script is ready", func(out string) bool { return strings.Contains(out, "ready") }); err != nil {
		return err
	}
	if err := r.Resize(t.ctx, 33, 77); err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	w, err := c.(berth.StdinWriter).Stdin(t.ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.WriteString(w, "hello\n"); err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	out := strings.ReplaceAll(o.Out, "\r\n", "\n")
	// A terminal echoes what is typed.
	return errors.Join(o.exited(0), same("the terminal's output", quoted(out), quoted("tty\nerr\nready\nhello\ngot hello\n33 77\n")), same("standard error", o.Err, ""))
}

func terminalInterrupt(t *trial) error {
	_, c, err := t.start("trap 'echo interrupted; exit 9' INT; echo ready; "+loop, step(func(s *berth.StepSpec) { s.TTY, s.OpenStdin = true, true }))
	if err != nil {
		return err
	}
	if err := t.until(c, "the script is ready", func(out string) bool { return strings.Contains(out, "ready") }); err != nil {
		return err
	}
	w, err := c.(berth.StdinWriter).Stdin(t.ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.WriteString(w, "\x03"); err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	if err := o.exited(9); err != nil {
		return err
	}
	if !strings.Contains(o.Out, "interrupted") {
		return fmt.Errorf("after ^C it wrote %s", quoted(o.Out))
	}
	return nil
}
