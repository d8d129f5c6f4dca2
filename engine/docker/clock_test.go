package docker

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
)

// TestClockAhead: a clock that may be the same as this machine's is taken for it; of another it is known by how much.
func TestClockAhead(t *testing.T) {
	asked := time.Now().UTC().Round(0)
	answered := asked.Add(20 * time.Millisecond)
	for _, row := range []struct{ said, ahead, unsure time.Duration }{
		{0, 0, 0},
		{20 * time.Millisecond, 0, 0},
		{time.Hour, time.Hour - 10*time.Millisecond, 10 * time.Millisecond},
		{-time.Minute, -time.Minute - 10*time.Millisecond, 10 * time.Millisecond},
	} {
		ahead, unsure := clockAhead(asked.Add(row.said).Format(time.RFC3339Nano), asked, answered)
		if ahead != row.ahead || unsure != row.unsure {
			t.Errorf("%v after it was asked: %v, give or take %v; want %v, %v", row.said, ahead, unsure, row.ahead, row.unsure)
		}
	}
	if ahead, unsure := clockAhead("soon", asked, answered); ahead != 0 || unsure != 0 {
		t.Errorf("no time: %v, %v", ahead, unsure)
	}
}

// TestOtherClock: a container that berth has ended is told as ended by it, and when, though the daemon's clock is another.
func TestOtherClock(t *testing.T) {
	const behind = -10 * time.Minute
	e := &Engine{host: &hostInfo{ahead: behind}}
	l := &life{e: e, dir: t.TempDir()}
	sent := time.Now().UTC()
	if err := writeJSON(filepath.Join(l.dir, intentFile), intent{Reason: berth.Stopped, At: sent}); err != nil {
		t.Fatal(err)
	}
	r := &record{}
	l.rec = r
	ended := sent.Add(time.Second)
	exit := l.exitOf(r, &container.State{
		Status: container.StateExited, ExitCode: 143,
		StartedAt: ended.Add(behind - time.Minute).Format(time.RFC3339Nano), FinishedAt: ended.Add(behind).Format(time.RFC3339Nano),
	}, nil, nil)
	if exit.Reason != berth.Stopped || !exit.Ended.Equal(ended) || !exit.Started.Equal(ended.Add(-time.Minute)) {
		t.Errorf("exit %+v", exit)
	}
}
