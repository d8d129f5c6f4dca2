package oci

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/berth-project/berth/companion"
	"github.com/berth-project/berth/engine/oci/monitor"
	"github.com/berth-project/berth/engine/oci/wire"
	"golang.org/x/sys/unix"
)

// MonitorName is the name (argv[0]) under which a program that calls MonitorMain is started as the monitor.
const MonitorName = "berth-monitor"

// MonitorMain runs the monitor and ends the process, if that is what this process was started for: by the
// name MonitorName. Otherwise it returns at once. A program that uses this engine without giving
// Config.Monitor calls it first thing in main (and in TestMain).
func MonitorMain() {
	if len(os.Args) == 0 || os.Args[0] != MonitorName {
		return
	}
	os.Exit(monitorMain(os.Args[1:]))
}

type words []string

func (w *words) String() string     { return fmt.Sprint(*w) }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

func monitorMain(args []string) int {
	// What containers see of what is made for them, mount points and their parents above all, is for all their users.
	umask := unix.Umask(0o022)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	starter := companion.Started()
	var worker words
	fl := flag.NewFlagSet(MonitorName, flag.ContinueOnError)
	dir := fl.String("data-dir", "", "")
	idle := fl.Duration("idle", 10*time.Second, "")
	fl.Var(&worker, "worker", "")
	if err := fl.Parse(args); err != nil {
		return 2
	}
	// What is left of another user's session (su, sudo) would fail whoever keeps temporary files there.
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" && unix.Access(d, unix.W_OK|unix.X_OK) != nil {
		_ = os.Unsetenv("XDG_RUNTIME_DIR")
	}
	instance, err := Instance(*dir)
	if err == nil {
		err = beOrdinary()
	}
	if err == nil {
		ctx, cancel := monitor.Signals(context.Background())
		defer cancel()
		err = monitor.Run(ctx, monitor.Config{Dir: *dir, Instance: instance, Idle: *idle, Worker: worker, Umask: umask, Logger: log}, starter.Ready)
	}
	switch {
	case errors.Is(err, monitor.ErrRunning):
		starter.Running()
		return 0
	case err != nil:
		log.Error("monitor", "err", err)
		e := wire.ErrorOf(err)
		starter.Failed(e.Kind + "\x00" + e.Text)
		return 1
	}
	return 0
}
