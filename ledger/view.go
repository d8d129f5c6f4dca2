package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// view is one look at the ledger: what is alive in it, in order of arrival.
type view struct {
	entries []Entry
	dead    []string // paths that this user may remove
	ignored []Ignored
}

// look reads the whole ledger. It needs no lock: every entry is whole, and what it learns without one is
// looked at again with it before anything is lent.
func (l *Ledger) look() view {
	var v view
	dirs, ignored := l.dirs()
	v.ignored = ignored
	seen := map[string]bool{}
	for _, dir := range dirs {
		names, err := readNames(dir)
		if err != nil {
			v.ignored = append(v.ignored, Ignored{Path: dir, Reason: err.Error()})
			continue
		}
		for _, n := range names {
			l.lookAt(&v, dir, n)
			seen[dir+"/"+n] = true
		}
	}
	l.mu.Lock()
	for path := range l.cache {
		if !seen[path] {
			delete(l.cache, path)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(v.entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.ID, b.ID))
	})
	v.entries = slices.CompactFunc(v.entries, func(a, b Entry) bool { return a.inode == b.inode }) // a hard link
	v.capUsers()
	return v
}

func (l *Ledger) lookAt(v *view, dir, name string) {
	path := dir + "/" + name
	if !validName(name) {
		v.ignored = append(v.ignored, Ignored{Path: path, Reason: "not an entry's name"})
		return
	}
	fd, err := openEntry(path, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) {
		return // released meanwhile
	}
	if err != nil {
		v.ignored = append(v.ignored, Ignored{Path: path, Reason: err.Error()})
		return
	}
	defer unix.Close(fd)
	e, err := l.read(fd, dir, name)
	switch {
	case errors.Is(err, errUnfinished) && !heldFile(fd):
		v.dead = append(v.dead, path)
	case errors.Is(err, errUnfinished):
	case err != nil:
		v.ignored = append(v.ignored, Ignored{Path: path, Reason: err.Error()})
	case l.alive(fd, &e):
		v.entries = append(v.entries, e)
	default:
		v.dead = append(v.dead, path)
	}
}

// capUsers leaves out what a user has beyond entriesMax.
func (v *view) capUsers() {
	if len(v.entries) <= entriesMax {
		return
	}
	count := map[uint32]int{}
	v.entries = slices.DeleteFunc(v.entries, func(e Entry) bool {
		count[e.Owner]++
		if count[e.Owner] <= entriesMax {
			return false
		}
		v.ignored = append(v.ignored, Ignored{Path: e.path, Reason: fmt.Sprintf("uid %d has more than %d entries", e.Owner, entriesMax)})
		return true
	})
}

// sweep removes what nobody holds, as far as this user may. The ledger is locked.
func (v *view) sweep() {
	for _, path := range v.dead {
		_ = unix.Unlink(path) // others' stay until their owners or root look
	}
}

func (v *view) lastSeq() int64 {
	if len(v.entries) == 0 {
		return 0
	}
	return v.entries[len(v.entries)-1].Seq
}

// taken says how each lent device is lent, to whatever pool.
func (v *view) taken() map[string]Taken {
	taken := map[string]Taken{}
	for _, e := range v.entries {
		if !e.Lent {
			continue
		}
		for _, d := range e.Devices {
			t := taken[d.ID]
			t.Exclusive = t.Exclusive || d.Bytes == 0
			t.Bytes += d.Bytes
			t.Tasks = append(t.Tasks, e.Task)
			taken[d.ID] = t
		}
	}
	return taken
}

// stalled reports whether a ticket has given no sign of life for too long. Its owner may be stopped, and
// may come back.
func (e *Entry) stalled(now time.Time, after time.Duration) bool {
	return now.Sub(e.touched).Abs() > after
}
