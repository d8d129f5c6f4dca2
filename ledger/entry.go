package ledger

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// Bounds on what others may write, so that nobody can make a look at the ledger slow.
const (
	fileMax     = 1 << 20 // bytes of one entry's file
	entriesMax  = 4096    // entries of one user
	holdersMax  = 64      // of one entry
	devicesMax  = 256     // of one entry
	deviceIDMax = 128     // bytes
	pathMax     = 1024    // bytes
	seqMax      = 1 << 60
)

// Entry is one line of the ledger: what is lent to a task, or what a task waits for.
type Entry struct {
	ID       string    `json:"id"`   // the name of its file
	Task     string    `json:"task"` //
	Owner    uint32    `json:"uid"`  // on the host
	Instance string    `json:"instance,omitempty"`
	Boot     string    `json:"boot"`
	PID      int       `json:"pid"` // who made it, in its pid namespace
	Seq      int64     `json:"seq"` // place in the order of arrival
	Arrived  time.Time `json:"arrived"`
	Lent     bool      `json:"lent"` // false waits
	Pool     string    `json:"pool,omitempty"`
	CPU      float64   `json:"cpu,omitempty"`    // cores
	Memory   int64     `json:"memory,omitempty"` // bytes
	Disk     int64     `json:"disk,omitempty"`   // bytes
	DiskOf   string    `json:"disk_of,omitempty"`
	Devices  []Device  `json:"devices,omitempty"`
	Chooses  bool      `json:"chooses,omitempty"` // waits for devices that it has yet to choose
	Holders  []Holder  `json:"holders,omitempty"`

	path    string
	inode   [2]uint64 // device and inode
	touched time.Time // the last sign of life of a ticket
}

// Ignored is something in the ledger that counts for nothing.
type Ignored struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// An entry's file holds the entry as one line of JSON, and each change of it as a further line; the last
// complete line counts (an empty line before each keeps it apart from one that was cut off). So a change is there whole or not at all, whenever its writer is killed, and what
// holds the file goes on holding it.

type cached struct {
	ino   uint64
	size  int64
	entry Entry
}

// newName returns the name of a new entry of task.
func newName(task string) string { return task + "." + strings.ToLower(rand.Text()[:10]) }

func validName(name string) bool {
	task, tail, ok := strings.Cut(name, ".")
	return ok && berth.CheckID(task) == nil && berth.CheckID(tail) == nil
}

// create makes the file of e in dir, held by this process. The ledger is locked.
func (l *Ledger) create(dir string, e *Entry) (*os.File, error) {
	e.path = dir + "/" + e.ID
	fd, err := unix.Open(e.path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w: %w", e.path, writeKind(err), err)
	}
	f := os.NewFile(uintptr(fd), e.path)
	err = errors.Join(readable(fd), holdFile(f))
	if err == nil {
		err = appendEntry(f, e)
	}
	if err != nil {
		_ = os.Remove(e.path)
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// readable has all read a file, whatever the umask. Most need no change, which a disk would have to be told.
func readable(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&0o7777 == 0o644 {
		return err
	}
	return unix.Fchmod(fd, 0o644)
}

// removed reports whether an entry's file has been deleted, which berth does only on release: logind deletes
// what users who log out have in /dev/shm.
func removed(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink == 0
}

// restore writes e to a new file in place of old. The ledger is locked.
func (l *Ledger) restore(old *os.File, e *Entry) (*os.File, error) {
	dir, err := l.ownDir()
	if err != nil {
		return nil, err
	}
	f, err := l.create(dir, e)
	if err != nil {
		return nil, err
	}
	_ = old.Close()
	return f, nil
}

func appendEntry(f *os.File, e *Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write %s: %w", e.path, err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size()+int64(len(line)) >= fileMax {
		return fmt.Errorf("write %s: %w: the entry has grown beyond %d bytes", e.path, berth.ErrExhausted, fileMax)
	}
	if _, err := f.Write(append(append([]byte{'\n'}, line...), '\n')); err != nil {
		return fmt.Errorf("write %s: %w: %w", e.path, writeKind(err), err)
	}
	return nil
}

func writeKind(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return berth.ErrExhausted
	}
	return berth.ErrDenied
}

// holdFile makes this open file a holder: a write lock, which only the owner can have, and which the kernel
// ends with the last process that has the file open, in whatever namespace. Each holder locks a byte of its
// own.
func holdFile(f *os.File) error {
	for i := range int64(holdersMax) {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: i, Len: 1}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
		if err == nil || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return err
		}
	}
	return errors.New("its file is locked by others throughout")
}

// heldFile reports whether an open file other than fd's holds the file. Asking for a read lock, it sees
// write locks only: a reader, who may be anybody, keeps nothing alive.
func heldFile(fd int) bool {
	lk := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk) == nil && lk.Type != unix.F_UNLCK
}

func openEntry(path string, flags int) (fd int, err error) {
	// O_NONBLOCK: whoever put a FIFO here must not stop us.
	return unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

// errUnfinished: the writer has not written its first line, or was killed before it did.
var errUnfinished = errors.New("nothing is written in it")

// read parses and checks the entry that is open as fd and lies in dir under name.
func (l *Ledger) read(fd int, dir, name string) (Entry, error) {
	var st unix.Stat_t
	path := dir + "/" + name
	if err := unix.Fstat(fd, &st); err != nil {
		return Entry{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > fileMax {
		return Entry{}, errors.New("not a file of an entry's size")
	}
	l.mu.Lock()
	c, ok := l.cache[path]
	l.mu.Unlock()
	if !ok || c.ino != st.Ino || c.size != st.Size {
		e, err := parseEntry(fd, st.Size)
		if err != nil {
			return Entry{}, err
		}
		if err := l.checkEntry(&e, name, st.Uid); err != nil {
			return Entry{}, err
		}
		e.path, e.inode = path, [2]uint64{st.Dev, st.Ino}
		c = cached{ino: st.Ino, size: st.Size, entry: e}
		l.mu.Lock()
		l.cache[path] = c
		l.mu.Unlock()
	}
	c.entry.touched = time.Unix(st.Mtim.Unix())
	return c.entry, nil
}

func parseEntry(fd int, size int64) (Entry, error) {
	buf := make([]byte, size)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return Entry{}, err
	}
	return lastEntry(buf[:n])
}

// lastEntry decodes the last complete line of data that is an entry. One that was cut off by a full disk is
// passed over.
func lastEntry(data []byte) (Entry, error) {
	err := errUnfinished
	for end := bytes.LastIndexByte(data, '\n'); end >= 0; end = bytes.LastIndexByte(data[:end], '\n') {
		line := data[bytes.LastIndexByte(data[:end], '\n')+1 : end]
		if len(line) == 0 {
			continue
		}
		var e Entry
		bad := json.Unmarshal(line, &e)
		if bad == nil {
			return e, nil
		}
		err = fmt.Errorf("not an entry: %w", bad)
	}
	return Entry{}, err
}

// checkEntry reports whether what e says of itself can be believed of a file of this name and owner.
func (l *Ledger) checkEntry(e *Entry, name string, uid uint32) error {
	switch {
	case e.ID != name || !strings.HasPrefix(name, e.Task+"."):
		return fmt.Errorf("it calls itself %q", e.ID)
	case l.id.hidden(uid):
		// This user namespace cannot tell whose it is; only that it is not ours.
		if e.Owner == l.id.hostUID {
			return errors.New("it claims to be of this user, and is not")
		}
	case l.id.userns && l.id.isMe(uid):
		if e.Owner != l.id.hostUID {
			return fmt.Errorf("it claims to be of uid %d, and is of uid %d", e.Owner, l.id.hostUID)
		}
	case !l.id.userns && e.Owner != uid:
		return fmt.Errorf("it claims to be of uid %d, and is of uid %d", e.Owner, uid)
	}
	if !(e.CPU >= 0 && e.CPU < 1<<20) || e.Memory < 0 || e.Disk < 0 || e.Seq <= 0 || e.Seq > seqMax ||
		len(e.Holders) > holdersMax || len(e.Devices) > devicesMax || len(e.Instance) > pathMax || len(e.Pool) > pathMax {
		return errors.New("its numbers make no sense")
	}
	return checkDevices(e.Task, e.Devices)
}

// alive reports whether e, whose file is open as fd, is of this boot and still held.
func (l *Ledger) alive(fd int, e *Entry) bool {
	if e.Boot != l.id.boot {
		return false
	}
	if heldFile(fd) {
		return true
	}
	return e.Lent && l.holdersAlive(e)
}

func (l *Ledger) holdersAlive(e *Entry) bool {
	owner := e.Owner
	if l.id.userns && owner == l.id.hostUID {
		owner = l.id.uid
	}
	for _, h := range e.Holders {
		if h.alive(l.id, owner) {
			return true
		}
	}
	return false
}
