package ledger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Dirs says where entries lie. What is lent is the union of all of them, and one lock covers all.
type Dirs struct {
	// Shared is where everybody's entries lie once it is there. Only root makes it, unless PerUser is "".
	Shared string
	// PerUser is a directory of root's into which all may write, such as /dev/shm. Where Shared is not there,
	// each user makes a directory of his own in it, so that nobody can touch another's entries. "" is none.
	PerUser string
}

// DefaultDirs are /run/berth/ledger and /dev/shm.
func DefaultDirs() Dirs { return Dirs{Shared: "/run/berth/ledger", PerUser: "/dev/shm"} }

const perUserPrefix = "berth-ledger-"

// lockDir is the directory whose flock is the ledger's lock: one that no user can replace, and the same one
// whether or not root has made the shared directory yet.
func (d Dirs) lockDir() string {
	if d.PerUser != "" {
		return d.PerUser
	}
	return d.Shared
}

// dirs lists the directories that hold entries, and says which were left out and why.
func (l *Ledger) dirs() (paths []string, ignored []Ignored) {
	if d := l.cfg.Dirs.Shared; d != "" {
		if err := l.checkShared(d); err == nil {
			paths = append(paths, d)
		} else if !errors.Is(err, fs.ErrNotExist) {
			ignored = append(ignored, Ignored{Path: d, Reason: err.Error()})
		}
	}
	if l.cfg.Dirs.PerUser == "" {
		return paths, ignored
	}
	names, err := readNames(l.cfg.Dirs.PerUser)
	if err != nil {
		return paths, append(ignored, Ignored{Path: l.cfg.Dirs.PerUser, Reason: err.Error()})
	}
	for _, n := range names {
		if !strings.HasPrefix(n, perUserPrefix) {
			continue
		}
		path := filepath.Join(l.cfg.Dirs.PerUser, n)
		if fi, err := os.Lstat(path); err != nil || !fi.IsDir() {
			ignored = append(ignored, Ignored{Path: path, Reason: "not a directory"})
			continue
		}
		paths = append(paths, path)
	}
	return paths, ignored
}

// ownDir returns the directory into which this user's entries go, making it where it is not there.
func (l *Ledger) ownDir() (string, error) {
	d := l.cfg.Dirs
	err := l.checkShared(d.Shared)
	if errors.Is(err, fs.ErrNotExist) && (l.id.hostRoot || d.PerUser == "") {
		if err := makeShared(d.Shared); err != nil && d.PerUser == "" {
			return "", fmt.Errorf("make ledger: %w: %w", berth.ErrDenied, err)
		}
		err = l.checkShared(d.Shared)
	}
	if err == nil {
		return d.Shared, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("ledger %s: %w: %w", d.Shared, berth.ErrDenied, err)
	}
	return l.perUserDir()
}

// perUserDir finds or makes the directory of this user. Its name ends at random, so that nobody can take it
// first.
func (l *Ledger) perUserDir() (string, error) {
	names, err := readNames(l.cfg.Dirs.PerUser)
	if err != nil {
		return "", fmt.Errorf("ledger: %w: %w", berth.ErrDenied, err)
	}
	for _, n := range names {
		path := filepath.Join(l.cfg.Dirs.PerUser, n)
		if !strings.HasPrefix(n, perUserPrefix) {
			continue
		}
		if st, err := lstat(path); err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR && l.id.isMe(st.Uid) {
			return path, nil
		}
	}
	path := filepath.Join(l.cfg.Dirs.PerUser, fmt.Sprintf("%s%d-%s", perUserPrefix, l.id.hostUID, strings.ToLower(rand.Text()[:8])))
	if err := os.Mkdir(path, 0o755); err != nil {
		return "", fmt.Errorf("make ledger: %w: %w", berth.ErrDenied, err)
	}
	if err := os.Chmod(path, 0o755); err != nil { // whatever the umask
		return "", fmt.Errorf("make ledger: %w: %w", berth.ErrDenied, err)
	}
	return path, nil
}

// makeShared makes the shared directory, which nobody ever sees with another mode. No error if it is there.
func makeShared(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + "." + strings.ToLower(rand.Text()[:8])
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	defer os.Remove(tmp)
	if err := os.Chmod(tmp, 0o777|os.ModeSticky); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// checkShared reports whether path can be trusted: in any other directory a user could take away what
// another has.
func (l *Ledger) checkShared(path string) error {
	st, err := lstat(path)
	if err != nil {
		return err
	}
	switch {
	case st.Mode&syscall.S_IFMT != syscall.S_IFDIR:
		return errors.New("not a directory; remove it")
	case st.Uid != 0 && !l.id.isMe(st.Uid) && !l.id.hidden(st.Uid):
		return fmt.Errorf("owned by uid %d, and not by root; remove it", st.Uid)
	case st.Mode&syscall.S_ISVTX == 0 || st.Mode&0o777 != 0o777:
		return fmt.Errorf("its mode is %#o, and not 01777; chmod 1777 it", st.Mode&0o7777)
	}
	return nil
}

func lstat(path string) (syscall.Stat_t, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return st, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st, nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
