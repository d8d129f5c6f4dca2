package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// eventsMax is how many events a daemon remembers.
const eventsMax = 256

// eventsTime bounds the question for events.
const eventsTime = 10 * time.Second

// history is what the daemon remembers of a container.
type history struct {
	known     bool      // the daemon has answered
	gone      bool      // it did not, and is not there: see Engine.gone
	restarted bool      // it was started anew after the container was
	died      bool      // it has seen the container's end
	oom       bool      // it has heard that the kernel killed processes of the container at its memory limit
	killed    []int     // the signals that it has sent to the container, for whomever
	at        time.Time // of the first of them
	// oldest is the time of the first event that it remembers, where it remembers no more: what came before is forgotten.
	oldest time.Time
}

// anew reports whether the daemon was started anew after the container was, as far as it remembers: where it has been away since,
// that it remembers nothing of before speaks for it.
func (h history) anew(away time.Time) bool {
	return h.restarted || !away.IsZero() && h.oldest.After(away)
}

// history asks the daemon for what happened to the container. It is asked late: it may send a signal first, and remember
// that when the container has ended by it.
func (l *life) history(ctx context.Context, r *record) history {
	ctx, cancel := context.WithTimeout(ctx, min(eventsTime, l.e.cfg.CallMax))
	defer cancel()
	since := r.Created.Add(-time.Minute) // however well the daemon's clock is known
	own := client.Filters{}.Add("type", "container").Add("container", l.docker()).Add("event", "start").Add("event", "kill").Add("event", "die").Add("event", "oom")
	var h history
	started := false
	err := l.e.events(ctx, since, own, func(m events.Message) {
		switch m.Action {
		case events.ActionStart:
			started = true
		case events.ActionKill:
			h.add(&m)
		case events.ActionDie:
			h.died = true
		case events.ActionOOM:
			h.oom = true
		default:
		}
	})
	if err != nil {
		return history{gone: l.e.gone(err)}
	}
	h.known = true
	if !started {
		// Forgotten by a daemon that was started anew, or for what came after.
		n, oldest, ahead := 0, time.Time{}, l.e.ahead(ctx)
		if err := l.e.events(ctx, since, client.Filters{}, func(m events.Message) {
			if n++; n == 1 {
				oldest = time.Unix(0, m.TimeNano).Add(-ahead)
			}
		}); err != nil {
			h.known, h.gone = false, l.e.gone(err)
			return h
		}
		if h.restarted = n < eventsMax; !h.restarted {
			h.oldest = oldest
		}
	}
	return h
}

// gone reports whether a daemon that has not answered a question is not there, so that it may have ended what it runs: it takes no
// connections, or breaks them off, or answers nobody, as one does whose socket is systemd's. Podman's service ends nothing.
func (e *Engine) gone(err error) bool {
	switch {
	case e.isPodman.Load():
		return false
	case !errors.Is(err, context.DeadlineExceeded):
		return unconnected(err) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	}
	ctx, cancel := context.WithTimeout(e.ctx, min(eventsTime/2, e.cfg.CallMax)) // it may take a new connection, and that a while
	defer cancel()
	_, err = e.api().Ping(ctx, client.PingOptions{})
	return err != nil
}

// events tells of what the daemon remembers since a time.
func (e *Engine) events(ctx context.Context, since time.Time, f client.Filters, each func(events.Message)) error {
	host, err := e.daemon(ctx)
	if err != nil {
		return err
	}
	if host.podman {
		return e.podmanEvents(ctx, since, f, each)
	}
	until := time.Now().Add(host.ahead + host.unsure)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res := e.api().Events(ctx, client.EventsListOptions{Since: stamp(since.Add(host.ahead)), Until: stamp(until), Filters: f})
	for {
		select {
		case m := <-res.Messages:
			each(m)
		case err, ok := <-res.Err:
			for { // what came before it
				select {
				case m := <-res.Messages:
					each(m)
					continue
				default:
				}
				break
			}
			if !ok || err == nil || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// signalsFile has a line for each signal that berth was asked to send.
const signalsFile = "signals"

// noteSignal is called before a signal is sent: one that berth has sent is nobody else's.
func (l *life) noteSignal(sig syscall.Signal) error {
	f, err := os.OpenFile(filepath.Join(l.dir, signalsFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(int(sig)) + "\n")
	_ = f.Close()
	return err
}

// endingSignal is the signal of somebody else's that may have ended a container which exited with code: one that asks for an end, which
// a command may answer with any code, or one that the code tells of. Others, like HUP, are mostly there for the command to live on. Of
// Podman, which does not say which they were, only the code tells; it is 0 then where that tells of none.
func (l *life) endingSignal(killed []int, code int) (sig int, ended bool) {
	foreign := slices.Clone(killed)
	raw, _ := os.ReadFile(filepath.Join(l.dir, signalsFile)) // none: berth has sent none
	for line := range strings.Lines(string(raw)) {
		n, _ := strconv.Atoi(strings.TrimSpace(line))
		i := slices.Index(foreign, n)
		if i < 0 {
			i = slices.Index(foreign, 0)
		}
		if i >= 0 {
			foreign = slices.Delete(foreign, i, i+1)
		}
	}
	if n := code - 128; n > 0 && n <= 64 && (slices.Contains(foreign, n) || slices.Contains(foreign, 0)) {
		return n, true
	}
	asks := []int{int(unix.SIGKILL), int(unix.SIGTERM), int(unix.SIGINT), int(unix.SIGQUIT), signalNumber(l.stopSignal())}
	for _, sig := range slices.Backward(foreign) {
		if !slices.Contains(asks, sig) {
			continue
		}
		if n := code - 128; n > 0 && n <= 64 { // what followed it, like a daemon's KILL, need not have been told
			sig = n
		}
		return sig, true
	}
	return 0, false
}

// foreign says whether it was another than berth or the command itself that ended the container, and how: somebody by
// the daemon, or the daemon when it stopped. away is when the daemon was first missed while berth watched; zero if it
// never was.
func (l *life) foreign(e *berth.Exit, h history, live bool, away time.Time) {
	sig, signaled := l.endingSignal(h.killed, e.Code)
	switch {
	case signaled:
		e.Reason, e.Signal = berth.Signaled, sig
		what := fmt.Sprintf("signal %d (%s)", sig, signalName(sig))
		e.Detail = what + ", which the daemon sent, and not for berth: for somebody else, or as it was stopped"
		if !live && !away.IsZero() {
			e.Detail = what + ", which the daemon sent as it was stopped"
		}
	case live && e.Code == unknownCode && h.known && !h.died && h.anew(away):
		e.Reason, e.Code = berth.Lost, -1
		e.Detail = "the daemon was away when the container ended, and does not know how"
	case live || h.known && !h.anew(away) || h.known && h.restarted && h.died || !h.known && !h.gone && away.IsZero():
		// It ended under the eyes of the daemon, which touches nothing by itself. One that was started anew may have left it
		// alone then, if it was told to meanwhile: what that did to it, it would remember with the end.
	case !away.IsZero() && e.Ended.After(away.Add(time.Second)) && !l.killCode(e.Code):
		// The daemon was dead by then, and has found it ended.
	case l.killCode(e.Code) && e.Code != unknownCode:
		e.Reason, e.Signal = berth.Signaled, e.Code-128
		e.Detail = "the daemon was stopped or started anew, and ended the container with that"
	default:
		e.Detail = fmt.Sprintf("the daemon was stopped or started anew at the time; it says that the container exited with %d, and not whether by itself", e.Code)
		e.Reason, e.Code = berth.Lost, -1
	}
}

// unknownCode is what daemons say of a container whose end nobody has seen.
const unknownCode = 255

// killCode reports whether an exit code is that of a container which the daemon ends.
func (l *life) killCode(code int) bool {
	return code == 128+int(unix.SIGKILL) || code == 128+signalNumber(l.stopSignal()) || code == unknownCode
}

func signalName(n int) string {
	if s := unix.SignalName(syscall.Signal(n)); s != "" {
		return s
	}
	return "SIG" + strconv.Itoa(n)
}
