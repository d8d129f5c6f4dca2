package logfile

// Follower is told of new bytes.
type Follower struct {
	w    *Writer
	c    chan struct{}
	hold bool
	ack  int64
}

// Follow registers a follower. Where hold is true it has read up to ack, and bytes beyond it are not
// dropped: the container waits in its write once it is Options.Limit ahead.
func (w *Writer) Follow(hold bool, ack int64) *Follower {
	f := &Follower{w: w, c: make(chan struct{}, 1), hold: hold, ack: ack}
	f.c <- struct{}{}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs == nil {
		w.subs = map[*Follower]struct{}{}
	}
	w.subs[f] = struct{}{}
	if hold {
		w.awaited = false
	}
	return f
}

// Unhold has the log wait no longer for the follower of Options.Held.
func (w *Writer) Unhold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.awaited = false
	w.changed.Broadcast()
}

// C gets a value when the log has come further or has ended since the last one.
func (f *Follower) C() <-chan struct{} { return f.c }

// Ack says that the follower has read up to offset.
func (f *Follower) Ack(offset int64) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.ack = max(f.ack, offset)
	f.w.changed.Broadcast()
}

// Close ends the following.
func (f *Follower) Close() {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	delete(f.w.subs, f)
	f.w.changed.Broadcast()
}

// held is where what a holding follower has not read begins; end where there is none.
func (w *Writer) held(end int64) int64 {
	if w.awaited {
		return 0
	}
	for f := range w.subs {
		if f.hold {
			end = min(end, f.ack)
		}
	}
	return end
}

// Ease has Pump wait for no follower any more: the container has ended, so that what is left to come is bounded.
// Followers that hold the log lose nothing of it; the log may pass its limit by as much. undo, to be called once at
// most, has it wait again.
func (w *Writer) Ease() (undo func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.eased++
	w.changed.Broadcast()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.eased--
	}
}

// waitForReaders blocks while a holding follower is so far behind that going on would drop what it has
// not read.
func (w *Writer) waitForReaders() {
	if w.opts.Limit <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.heldUp() {
		w.changed.Wait()
	}
}

func (w *Writer) heldUp() bool { return w.eased == 0 && w.end-w.held(w.end) >= w.opts.Limit }
