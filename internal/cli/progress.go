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
	doing string // what is said of each, "pulling"
	done  string // and at its end, "pulled"
	out   io.Writer
	say   func(format string, args ...any)
	now   func() time.Time
	mu    sync.Mutex
	pulls map[string]*pull
	waits map[string]*waitWord
	bars  *mpb.Progress
}

// waitWord is said of an image of which nothing comes.
type waitWord struct {
	since time.Time // when something came last
	next  time.Duration
	why   string // the last try failed
	timer *time.Timer
}

// waitFirst is how long nothing may come before it is said, and why if that is known; then it is said again, each time
// after twice as long.
const waitFirst = 10 * time.Second

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
	p := &progress{mode: mode, doing: "pulling", done: "pulled", out: a.err, say: a.say, now: time.Now, pulls: map[string]*pull{}, waits: map[string]*waitWord{}}
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
	p.heard(image, r)
	if r.Phase == "retry" {
		return
	}
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
		p.say("%s %s: %s", p.doing, image, pl.text())
	}
}

// heard notes that something came of an image, or why not; p.mu is held.
func (p *progress) heard(image string, r berth.Progress) {
	w := p.waits[image]
	switch {
	case r.Phase == "done" && r.Layer == "":
		if w != nil {
			w.timer.Stop()
			delete(p.waits, image)
		}
		return
	case w == nil:
		w = &waitWord{timer: time.AfterFunc(waitFirst, func() { p.late(image) })}
		p.waits[image] = w
	case r.Phase == "retry":
		w.why = r.Why
		return
	}
	w.since, w.next, w.why = p.now(), waitFirst, r.Why
	w.timer.Reset(waitFirst)
}

// late says that nothing has come of an image for long.
func (p *progress) late(image string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.waits[image]
	if w == nil {
		return
	}
	text := fmt.Sprintf("waiting for %s: nothing has come for %s", image, berth.FormatDuration(p.now().Sub(w.since).Round(time.Second)))
	if w.why != "" {
		text += ", trying again: " + w.why
	}
	if p.bars != nil {
		_, _ = fmt.Fprintf(p.bars, "berth: %s\n", text)
	} else {
		p.say("%s", text)
	}
	w.next *= 2
	w.timer.Reset(w.next)
}

// settle ends the waiting for images.
func (p *progress) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for image, w := range p.waits {
		w.timer.Stop()
		delete(p.waits, image)
	}
}

func (p *progress) begin(image string) {
	if p.mode == "plain" {
		p.say("%s %s", p.doing, image)
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
	for _, l := range pl.layers {
		if l.Total == 0 && l.Done > 0 { // nobody knows how much there is
			return bytesOf(done)
		}
	}
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
	size := ""
	if _, total := pl.downloaded(); total > 0 { // else nobody knows
		size = ": " + bytesOf(total)
	}
	p.say("%s %s%s in %.1f s", p.done, image, size, p.now().Sub(pl.began).Seconds())
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
	p.settle()
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
