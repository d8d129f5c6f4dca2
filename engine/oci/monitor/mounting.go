package monitor

import (
	"os"
	"strings"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/berth-project/berth/engine/oci/wire"
	"golang.org/x/sys/unix"
)

// mounting is the mount of a root that is made beside what else a start needs: it takes longer than most of that.
type mounting struct {
	done   chan struct{}
	looked chan struct{} // closed when nothing looks at places any more
	root   *os.File
	err    error
}

func mountRoot(root bundle.Root, places string) *mounting {
	m := &mounting{done: make(chan struct{}), looked: make(chan struct{})}
	go func() {
		defer close(m.looked)
		fd := -1
		if m.root, m.err = rootfs.Overlay(root); m.err == nil && places != "" {
			fd, _ = unix.FcntlInt(m.root.Fd(), unix.F_DUPFD_CLOEXEC, 0) // its taker may close the root
		}
		close(m.done)
		if fd >= 0 {
			lookAt(fd, places)
			_ = unix.Close(fd)
		}
	}()
	return m
}

// lookAt has the kernel know the places of what is lent by the time that the child comes to them. It answers nothing.
func lookAt(root int, places string) {
	wire.EachPlace(places, func(at string, _ bool) {
		how := unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		}
		if fd, err := unix.Openat2(root, strings.TrimPrefix(at, "/"), &how); err == nil {
			_ = unix.Close(fd)
		}
	})
}

// take waits for the mount, which is the caller's then.
func (m *mounting) take() (*os.File, error) {
	<-m.done
	root := m.root
	m.root = nil
	return root, m.err
}

// drop takes down a mount that nobody took.
func (m *mounting) drop() {
	if m == nil {
		return
	}
	<-m.looked
	if root, err := m.take(); err == nil && root != nil {
		_ = root.Close()
	}
}
