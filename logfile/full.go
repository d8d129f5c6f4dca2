package logfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	block       = 4096     // bytes that a file system frees at once
	reserveSize = 1 << 20  // bytes set aside for logs
	reserveFrom = 16 << 20 // with less free, nothing is set aside
)

// setAside makes the reserve where it is not, and there is enough room. That it cannot is no fault of a log.
func (o *Options) setAside() {
	if o.Reserve == "" {
		return
	}
	if st, err := os.Lstat(o.Reserve); err == nil && st.Size() == reserveSize {
		return
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(o.Reserve), &fs); err != nil || int64(fs.Bavail)*fs.Bsize < reserveFrom {
		return
	}
	f, err := os.OpenFile(o.Reserve, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	if errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveSize), f.Close()) != nil {
		_ = os.Remove(o.Reserve)
	}
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// makeRoom gets room on a full disk: what was set aside, else the log's own head. It reports whether it got some.
func (w *Writer) makeRoom() bool {
	if w.opts.Reserve != "" && os.Remove(w.opts.Reserve) == nil {
		return true
	}
	return w.shrink()
}

// shrink frees the older half of the log, once those who hold it have read that, and bounds the log to the other
// half from here on.
func (w *Writer) shrink() bool {
	w.mu.Lock()
	limit := (w.end - w.dropped) / 2
	if limit < block {
		w.mu.Unlock()
		return false
	}
	w.opts.Limit = limit
	w.mu.Unlock()
	w.waitForReaders()
	w.mu.Lock()
	dropped, offset := w.dropped, min(w.end-limit, w.held(w.end))&^(block-1)
	w.mu.Unlock()
	if offset <= dropped || !w.dropHead(offset) {
		return false
	}
	_ = w.setErr(fmt.Errorf("log %s: its first %d bytes were dropped to make room for its last: %w", filepath.Base(w.file.Name()), offset, unix.ENOSPC))
	return true
}
