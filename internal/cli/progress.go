package cli

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/berth-project/berth"
)

// progress shows how far pulls are. It may be used by several goroutines.
type progress struct {
	mode  string // "bars", "plain" or "none"
	out   io.Writer
	say   func(format string, args ...any)
	now   func() time.Time
	mu    sync.Mutex
	pulls map[string]*pull
	bars  *mpb.Progress
}

// pull is one image's progress.
type pull struct {
	began, told time.Time
	layers      map[string]berth.Progress
	bars        map[string]*layerBar
	done        bool
}

// layerBar is the bar of a layer. Its phase is read while it is drawn, beside everything else.
type layerBar struct {
	*mpb.Bar
	phase atomic.Pointer[string]
}

// The plain form says something when a pull begins to fetch, and then now and then.
const plainEvery = 5 * time.Second

func (a *app) newProgress(mode string, quiet bool) *progress {
	p := &progress{mode: mode, out: a.err, say: a.say, now: time.Now, pulls: map[string]*pull{}}
	switch {
	case quiet:
		p.mode = "none"
	case mode == "auto" && terminal(a.err) != nil:
		p.mode = "bars"
	case mode == "auto":
		p.mode = "plain"
	}
	return p
}

// report takes note of one image's progress.
func (p *progress) report(image string, r berth.Progress) {
	if p.mode == "none" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pl := p.pulls[image]
	if pl == nil || pl.done {
		if r.Phase == "done" || r.Phase == "resolve" {
			return // nothing had to be fetched, so far
		}
		pl = &pull{began: p.now(), layers: map[string]berth.Progress{}, bars: map[string]*layerBar{}}
		p.pulls[image] = pl
		p.begin(image)
	}
	if r.Layer != "" {
		pl.layers[r.Layer] = r
	}
	switch {
	case r.Phase == "done" && r.Layer == "":
		pl.done = true
		p.end(image, pl)
	case p.mode == "bars":
		p.bar(pl, r)
	case p.now().Sub(pl.told) >= plainEvery && p.now().Sub(pl.began) >= plainEvery:
		pl.told = p.now()
		p.say("pulling %s: %s", image, pl.text())
	}
}

func (p *progress) begin(image string) {
	if p.mode == "plain" {
		p.say("pulling %s", image)
		return
	}
	if p.bars == nil {
		p.bars = mpb.New(mpb.WithOutput(p.out), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
	}
}

// downloaded sums up what was fetched, and what there is to fetch as far as that is known.
func (pl *pull) downloaded() (done, total int64) {
	for _, l := range pl.layers {
		done, total = done+l.Done, total+max(l.Total, l.Done)
	}
	return done, total
}

func (pl *pull) text() string {
	done, total := pl.downloaded()
	return fmt.Sprintf("%s of %s", bytesOf(done), bytesOf(total))
}

func (p *progress) end(image string, pl *pull) {
	for _, b := range pl.bars {
		b.Abort(true)
	}
	if p.mode == "bars" {
		p.bars.Wait()
		p.bars = nil
	}
	_, total := pl.downloaded()
	p.say("pulled %s: %s in %.1f s", image, bytesOf(total), p.now().Sub(pl.began).Seconds())
}

func (p *progress) bar(pl *pull, r berth.Progress) {
	if r.Layer == "" || p.bars == nil {
		return
	}
	b := pl.bars[r.Layer]
	if b == nil {
		b = &layerBar{}
		b.phase.Store(&r.Phase)
		b.Bar = p.bars.AddBar(r.Total, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
			return fmt.Sprintf("%s %-8s ", shortID(r.Layer), *b.phase.Load())
		})), mpb.AppendDecorators(decor.CountersKibiByte(" % .1f / % .1f")))
		pl.bars[r.Layer] = b
	}
	b.phase.Store(&r.Phase)
	b.SetTotal(r.Total, false)
	b.SetCurrent(r.Done)
	if r.Phase == "done" {
		b.SetTotal(-1, true)
	}
}

// close ends what is still shown.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars == nil {
		return
	}
	for _, pl := range p.pulls {
		for _, b := range pl.bars {
			b.Abort(true)
		}
	}
	p.bars.Wait()
	p.bars = nil
}
