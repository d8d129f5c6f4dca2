package monitor

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"golang.org/x/sys/unix"
)

// skeletonsDir holds the skeletons, below Monitor.state.
const skeletonsDir = ".skeletons"

// mountPoint is where every container has something mounted.
type mountPoint struct {
	path string // below the root
	dir  bool
}

var mountPoints = []mountPoint{
	{"dev", true}, {"proc", true}, {"sys", true}, {"etc/hosts", false}, {"etc/hostname", false}, {"etc/resolv.conf", false},
}

// skeletons are read-only layers, one for each image, with the mount points that every container needs and
// the image does not have. Without them each container would make them in its own writable layer, which on
// some disks takes longer than all else of its start.
type skeletons struct {
	dir      string
	rootless bool

	mu sync.Mutex
	m  map[string]string // layers of the image, joined: the skeleton's directory, "" where none is needed
}

// maxSkeletons bounds what many images make us hold.
const maxSkeletons = 256

// layers are the layers of a root, with the image's skeleton on top.
func (s *skeletons) layers(image []string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.Join(image, "\n")
	dir, ok := s.m[key]
	if !ok {
		if len(s.m) >= maxSkeletons {
			return image, nil
		}
		var err error
		if dir, err = s.make(image); err != nil {
			return nil, fmt.Errorf("mount points of the image: %w", err)
		}
		s.m[key] = dir
	}
	if dir == "" {
		return image, nil
	}
	return append([]string{dir}, image...), nil
}

func (s *skeletons) make(image []string) (string, error) {
	root, err := rootfs.Overlay(bundle.Root{Layers: image, UserXattr: s.rootless})
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	dir := filepath.Join(s.dir, fmt.Sprint(len(s.m)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	made := false
	for _, p := range mountPoints {
		ok, err := makePoint(root, dir, p)
		if err != nil {
			return "", err
		}
		made = made || ok
	}
	if !made {
		return "", os.Remove(dir)
	}
	return dir, nil
}

// makePoint makes a mount point that the image does not have. It leaves alone what is not plain: where a
// parent is a symbolic link or has attributes that a directory above it would hide, the container makes its
// own.
func makePoint(root *os.File, dir string, p mountPoint) (made bool, err error) {
	if st, err := statBelow(root, p.path); st != nil || err != nil {
		return false, plain(err)
	}
	if parent := path.Dir(p.path); parent != "." {
		ok, err := makeParent(root, dir, parent)
		if !ok || err != nil {
			return false, err
		}
	}
	target := filepath.Join(dir, p.path)
	if p.dir {
		return true, os.Mkdir(target, 0o755)
	}
	return true, os.WriteFile(target, nil, 0o644)
}

// makeParent makes a directory as the image has it: what lies above it in an overlay gives it its attributes.
func makeParent(root *os.File, dir, name string) (bool, error) {
	target := filepath.Join(dir, name)
	if _, err := os.Lstat(target); err == nil {
		return true, nil
	}
	st, err := statBelow(root, name)
	if err != nil {
		return false, plain(err)
	}
	if st == nil {
		return true, os.Mkdir(target, 0o755)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || hasAttributes(root, name) {
		return false, nil
	}
	if err := os.Mkdir(target, 0o700); err != nil {
		return false, err
	}
	return true, errors.Join(
		os.Chown(target, int(st.Uid), int(st.Gid)),
		unix.Chmod(target, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, target, []unix.Timespec{st.Atim, st.Mtim}, 0),
	)
}

// statBelow is nil where nothing is at p below root. No symbolic link is followed.
func statBelow(root *os.File, p string) (*unix.Stat_t, error) {
	fd, err := openBelow(root, p, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	st := new(unix.Stat_t)
	return st, unix.Fstat(fd, st)
}

func openBelow(root *os.File, p string, flags uint64) (int, error) {
	return unix.Openat2(int(root.Fd()), p, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// plain takes a symbolic link, or something that is no directory, on the way for no error.
func plain(err error) error {
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// hasAttributes reports whether a directory has extended attributes other than overlay's own.
func hasAttributes(root *os.File, p string) bool {
	fd, err := openBelow(root, p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return true
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 4096)
	n, err := unix.Flistxattr(fd, buf)
	if err != nil {
		return !errors.Is(err, unix.EOPNOTSUPP)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name != "" && !strings.Contains(name, ".overlay.") {
			return true
		}
	}
	return false
}
