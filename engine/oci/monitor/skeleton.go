package monitor

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/scratch"
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

// skeletons are read-only layers, one for each image and what is lent to its containers, with the mount points
// that each of these containers needs and the image does not have. Without them each container would make them in its own writable layer, which on
// some disks takes longer than all else of its start.
type skeletons struct {
	dir      string
	rootless bool

	mu   sync.Mutex
	m    map[string]skeleton // by the layers of the image and the places, joined
	next int                 // name of the next directory
}

// skeleton is what is known of an image.
type skeleton struct {
	dir   string // the layer with its mount points; "" where none is needed
	plain *plainFiles
	etc   *unix.Stat_t // of /etc, where files may be laid over those in it; else nil
}

// plainFiles are the paths of empty files that a skeleton has: no link is on the way to them.
type plainFiles struct{ at map[string]bool }

func (p *plainFiles) files() map[string]bool {
	if p == nil {
		return nil
	}
	return p.at
}

// maxSkeletons bounds what many images make us hold.
const maxSkeletons = 256

// of is the skeleton of an image and of places where what is lent to a container is mounted; made when it is
// needed first.
func (s *skeletons) of(image []string, places string) (skeleton, error) {
	key := strings.Join(image, "\n") + "\n\x00" + places
	s.mu.Lock()
	defer s.mu.Unlock()
	sk, ok := s.m[key]
	if ok || len(s.m) >= maxSkeletons {
		return sk, nil
	}
	sk, err := s.look(image, append(slices.Clone(mountPoints), pointsAt(places)...))
	if err != nil {
		return skeleton{}, fmt.Errorf("mount points of the image: %w", err)
	}
	s.m[key] = sk
	return sk, nil
}

// pointsAt are the mount points at places. Below a mount that every container has there is nothing of the image's.
func pointsAt(places string) (points []mountPoint) {
	wire.EachPlace(places, func(at string, dir bool) {
		rel := strings.TrimPrefix(at, "/")
		if !slices.ContainsFunc(mountPoints, func(m mountPoint) bool { return rel == m.path || strings.HasPrefix(rel, m.path+"/") }) {
			points = append(points, mountPoint{rel, dir})
		}
	})
	return points
}

// over are the layers of a root, with the skeleton on top.
func (sk skeleton) over(image []string) []string {
	if sk.dir == "" {
		return image
	}
	return append([]string{sk.dir}, image...)
}

func (s *skeletons) look(image []string, points []mountPoint) (skeleton, error) {
	root, err := rootfs.Overlay(bundle.Root{Layers: image, UserXattr: s.rootless})
	if err != nil {
		return skeleton{}, err
	}
	defer func() { _ = root.Close() }()
	plain := &plainFiles{at: map[string]bool{}}
	dir, err := s.make(root, points, plain)
	if err != nil {
		return skeleton{}, err
	}
	etc, err := plainEtc(root)
	if err != nil {
		if dir != "" {
			err = errors.Join(err, scratch.Remove(dir))
		}
		return skeleton{}, err
	}
	return skeleton{dir: dir, plain: plain, etc: etc}, nil
}

func (s *skeletons) make(root *os.File, points []mountPoint, plain *plainFiles) (string, error) {
	dir := filepath.Join(s.dir, fmt.Sprint(s.next))
	s.next++
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	made := false
	for _, p := range points {
		ok, err := makePoint(root, dir, p)
		if err != nil {
			return "", errors.Join(err, scratch.Remove(dir))
		}
		made = made || ok
		if st, err := os.Lstat(filepath.Join(dir, p.path)); ok && err == nil && st.Mode().IsRegular() {
			plain.at["/"+p.path] = true
		}
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
	if _, err := os.Lstat(target); err == nil {
		return true, nil // it is a parent of another one, or the same
	}
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
	if above := path.Dir(name); above != "." {
		if ok, err := makeParent(root, dir, above); !ok || err != nil {
			return false, err
		}
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
	return true, liken(target, st)
}

// liken gives a directory the owner, mode and times of another.
func liken(dir string, st *unix.Stat_t) error {
	return errors.Join(
		os.Chown(dir, int(st.Uid), int(st.Gid)),
		unix.Chmod(dir, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{st.Atim, st.Mtim}, 0),
	)
}

// plainEtc says what the image's /etc is like, if a layer with berth's files may be laid over it: it and they are
// plain, or not there. Elsewhere the files are mounted one by one.
func plainEtc(root *os.File) (*unix.Stat_t, error) {
	for _, p := range mountPoints {
		if p.dir {
			continue
		}
		st, err := statBelow(root, p.path)
		if err != nil || st != nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, plain(err)
		}
	}
	st, err := statBelow(root, "etc")
	switch {
	case err != nil:
		return nil, plain(err)
	case st == nil:
		now := unix.NsecToTimespec(time.Now().UnixNano())
		return &unix.Stat_t{Mode: unix.S_IFDIR | 0o755, Atim: now, Mtim: now}, nil
	case st.Mode&unix.S_IFMT != unix.S_IFDIR || hasAttributes(root, "etc"):
		return nil, nil
	}
	return st, nil
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
