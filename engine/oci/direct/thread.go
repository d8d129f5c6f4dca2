package direct

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"github.com/berth-project/berth/engine/oci/thread"
	"golang.org/x/sys/unix"
)

// The names in the file system of a forking thread. A child begins with that file system as its root.
const (
	emptyDir = "e"    // empty; hides directories
	nullFile = "null" // a null device; hides files
	procDir  = "p"    // with revealed: the host's /proc and /sys
	sysDir   = "s"
)

// tinyOptions are the options of a forking thread's file system; it holds the names above and nothing else.
var tinyOptions = [][2]string{{"size", "16k"}, {"nr_inodes", "16"}, {"mode", "0755"}}

// request asks a thread for a child.
type request struct {
	args  cloneArgs
	prog  *program
	pin   bool // take a descriptor of the child's mount namespace
	netns int  // network namespace in which the child is made; -1 is this process's
	// parentTid, where not nil, takes the child's pid before the child runs.
	parentTid *int32
	// begun, where not nil, is closed when the thread has come to the call that makes the child.
	begun chan struct{}
	pid   int
	pidfd int32
	mntns int // -1 where there is none
	errno syscall.Errno
	done  chan struct{}
}

// threads are the operating system's threads that make children. A child dies with the thread that made it
// (PR_SET_PDEATHSIG speaks of threads), so they live as long as the starter. Each has a mount namespace of
// its own that holds one empty read-only tmpfs: a child's copy of it is cheap, and no path of the host can
// be named in it.
type threads struct {
	kind     threadKind
	max      int
	requests chan *request

	mu      sync.Mutex
	started int
	idle    int
	open    error // why the threads' roots could not be locked, where they were to be
	wg      sync.WaitGroup
}

// threadKind says what is special of a thread's mount namespace.
type threadKind uint8

const (
	kindPlain threadKind = iota
	// kindUsual is plain, and its bounding set is usualCaps: what a child does not have it need not drop, one by one.
	kindUsual
	// kindRevealed shows /proc and /sys, which the kernel wants to see before it mounts them in a user namespace.
	kindRevealed
	// kindSealed has a locked root: what lies under it cannot be reached even with CAP_SYS_ADMIN. See seal.
	kindSealed
	// kindHosted sees the host's mounts, as this process does: for containers with hooks.
	kindHosted
)

func newThreads(limit int, kind threadKind) *threads {
	return &threads{kind: kind, max: limit, requests: make(chan *request)}
}

// unlocked says why the root of a container that such a thread makes is not locked; nil where it is.
func (t *threads) unlocked() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open
}

// do makes the child that r asks for.
func (t *threads) do(r *request) error {
	t.mu.Lock()
	if t.idle == 0 && t.started < t.max {
		if err := t.start(); err != nil {
			t.mu.Unlock()
			return err
		}
	}
	if t.idle > 0 {
		t.idle--
	}
	t.mu.Unlock()
	r.done = make(chan struct{})
	t.requests <- r
	<-r.done
	return nil
}

// close ends the threads, and with them every child that still runs.
func (t *threads) close() {
	close(t.requests)
	t.wg.Wait()
}

// start starts a thread; t.mu is held.
func (t *threads) start() error {
	ready := make(chan error)
	t.wg.Add(1)
	go t.run(ready)
	err := <-ready
	if locked := (*lockError)(nil); errors.As(err, &locked) {
		t.open, err = err, nil
	}
	if err != nil {
		return fmt.Errorf("make forking thread: %w", err)
	}
	t.started++
	t.idle++
	return nil
}

func (t *threads) run(ready chan<- error) {
	defer t.wg.Done()
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	if unix.Gettid() == os.Getpid() {
		// The main thread stands for the process in /proc, and is not to move elsewhere.
		t.wg.Add(1)
		again := make(chan error)
		go t.run(again)
		err := <-again
		runtime.UnlockOSThread()
		ready <- err
		return
	}
	thread.BeOrdinary()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		ready <- err
		return
	}
	defer func() { _ = unix.Close(home) }()
	stack, err := newStack()
	if err == nil && t.kind != kindHosted {
		err = t.confine()
	}
	if err == nil && t.kind == kindUsual {
		err = dropUnusual()
	}
	var open *lockError
	if err == nil && t.kind == kindSealed {
		if err = seal(stack); err != nil && !errors.As(err, &open) {
			err = fmt.Errorf("lock thread's root: %w", err)
		}
	}
	ready <- err
	if err != nil && open == nil {
		return
	}
	for r := range t.requests {
		t.fork(r, stack, home)
		t.mu.Lock()
		t.idle++
		t.mu.Unlock()
		close(r.done)
	}
	_ = unix.Munmap(stack)
}

func (t *threads) fork(r *request, stack []byte, home int) {
	r.pidfd, r.mntns = -1, -1
	r.args.flags |= unix.CLONE_PIDFD | unix.CLONE_VFORK | cloneClearSighand
	r.args.pidfd = uint64(uintptr(unsafe.Pointer(&r.pidfd)))
	r.args.exitSignal = uint64(unix.SIGCHLD)
	r.args.useStack(stack)
	if r.parentTid != nil {
		r.args.parentTid = uint64(uintptr(unsafe.Pointer(r.parentTid)))
	}
	if r.netns >= 0 {
		if err := unix.Setns(r.netns, unix.CLONE_NEWNET); err != nil {
			_ = errors.As(err, &r.errno)
			return
		}
		defer func() {
			if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
				panic("direct: a thread is lost in a container's network namespace: " + err.Error())
			}
		}()
	}
	if r.begun != nil {
		close(r.begun)
		r.begun = nil
	}
	r.pid, r.errno = clone(&r.args, r.prog)
	if r.errno != 0 || !r.pin || r.prog.failed != 0 {
		return
	}
	// As long as this descriptor is open, the end of the child does not pay for taking its mounts down.
	if fd, err := unix.IoctlRetInt(int(r.pidfd), unix.PIDFD_GET_MNT_NAMESPACE); err == nil {
		r.mntns = fd
	}
}

// confine gives the thread a file system of its own.
func (t *threads) confine() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	tiny, err := tinyRoot()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tiny) }()
	if err := fillTiny(tiny, t.kind == kindRevealed); err != nil {
		return err
	}
	if err := unix.MoveMount(tiny, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach thread's root: %w", err)
	}
	if t.kind == kindRevealed {
		if err := reveal(tiny); err != nil {
			return err
		}
	}
	if err := unix.Fchdir(tiny); err != nil {
		return fmt.Errorf("enter thread's root: %w", err)
	}
	if err := nullIn(tiny); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to thread's root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NOEXEC)
	if err := unix.Mount("", "/", "", flags, ""); err != nil {
		return fmt.Errorf("make thread's root read-only: %w", err)
	}
	return nil
}

// lockError says that a thread's root stays as it was, and why.
type lockError struct{ err error }

func (e *lockError) Error() string { return e.err.Error() }
func (e *lockError) Unwrap() error { return e.err }

// seal locks the thread's root upon what lies under it, the initial ramdisk of the machine, which no process
// can do without. The kernel locks what a mount namespace has when it is copied to another user namespace, as
// there the mounts that hide something must not be taken away. So a child copies this thread's to a user
// namespace of its own; the thread enters the copy, and copies it once more to its own user namespace. A lock
// cannot be taken off, only handed on by pivot_root(2): see plan.changeRoot.
func seal(stack []byte) error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer func() { _, _ = unix.Close(ends[0]), unix.Close(ends[1]) }()
	var bs builders
	b := bs.take()
	defer bs.give(b)
	// The child waits for the pipe, to which nobody writes, and has nothing else.
	b.call(unix.SYS_READ, arg(ends[0]), address(b.alloc(8)), 1)
	b.call(unix.SYS_EXIT_GROUP, 0)
	b.prologue()
	b.call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, arg(unix.SIGKILL), 0, 0, 0)
	b.closeAllBut(0, ends[:1])
	pidfd := int32(-1)
	args := cloneArgs{
		flags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_PIDFD | cloneClearSighand, exitSignal: uint64(unix.SIGCHLD),
		pidfd: uint64(uintptr(unsafe.Pointer(&pidfd))),
	}
	args.useStack(stack)
	pid, errno := clone(&args, b.finish())
	if errno != 0 { // there are no user namespaces, or too many
		return &lockError{fmt.Errorf("make user namespace: %w", errno)}
	}
	c := newChild(pid, int(pidfd))
	defer func() {
		_ = c.kill(unix.SIGKILL)
		_, _ = c.wait()
		_ = c.close()
	}()
	if err := unix.Setns(int(pidfd), unix.CLONE_NEWNS); err != nil {
		return &lockError{fmt.Errorf("enter mount namespace: %w", err)}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	return nil
}

func tinyRoot() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, o := range tinyOptions {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("tmpfs option %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	return fd, nil
}

func fillTiny(tiny int, revealed bool) error {
	dirs := []string{emptyDir}
	if revealed {
		dirs = append(dirs, procDir, sysDir)
	}
	for _, d := range dirs {
		if err := unix.Mkdirat(tiny, d, 0o755); err != nil {
			return fmt.Errorf("make directory in thread's root: %w", err)
		}
	}
	return nil
}

// nullIn makes the null device in tiny; where devices cannot be made, it binds the host's.
func nullIn(tiny int) error {
	err := unix.Mknodat(tiny, nullFile, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	if err == nil {
		return unix.Fchmodat(tiny, nullFile, 0o666, 0)
	}
	if err := unix.Mknodat(tiny, nullFile, unix.S_IFREG, 0); err != nil {
		return fmt.Errorf("make null device: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone /dev/null: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make /dev/null's mount read-only: %w", err)
	}
	if err := unix.MoveMount(fd, "", tiny, nullFile, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind /dev/null: %w", err)
	}
	return nil
}

// reveal binds the host's /proc and /sys into tiny.
func reveal(tiny int) error {
	for _, m := range [][2]string{{"/proc", procDir}, {"/sys", sysDir}} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, m[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("clone %s: %w", m[0], err)
		}
		err = unix.MoveMount(fd, "", tiny, m[1], unix.MOVE_MOUNT_F_EMPTY_PATH)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("bind %s: %w", m[0], err)
		}
	}
	return nil
}
