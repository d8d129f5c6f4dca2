package rootfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/rootfs"
)

// A link with ".." is followed also while files are renamed elsewhere, which the kernel alone does not do.
func TestOpenWhileOthersRename(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o700),
		os.WriteFile(filepath.Join(dir, "a/file"), nil, 0o600),
		os.Symlink("../../../a/b/../b/c/../../file", filepath.Join(dir, "a/b/c/link")),
		os.Mkdir(filepath.Join(elsewhere, "x"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(root) }()
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for from, to := elsewhere+"/x", elsewhere+"/y"; ; from, to = to, from {
			select {
			case <-stop:
				return
			default:
				_ = os.Rename(from, to)
			}
		}
	})
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	kernel := 0
	for range 5_000 {
		fd, err := rootfs.Open(root, "a/b/c/link", how)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		if fd, err = unix.Openat2(root, "a/b/c/link", how); errors.Is(err, unix.EAGAIN) {
			kernel++
		} else if err == nil {
			_ = unix.Close(fd)
		}
	}
	close(stop)
	others.Wait()
	t.Logf("the kernel said EAGAIN %d times of 5000", kernel)
}
