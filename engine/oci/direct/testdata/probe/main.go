// Command probe runs in a container, and prints what each of a set of system calls answers there.
package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "escape" {
		escape()
		return
	}
	path := func(s string) uintptr {
		b := append([]byte(s), 0)
		return uintptr(unsafe.Pointer(&b[0]))
	}
	var buf [4096]byte
	mem := uintptr(unsafe.Pointer(&buf[0]))
	for _, c := range []struct {
		name string
		nr   uintptr
		args [6]uintptr
	}{
		{"getpid", unix.SYS_GETPID, [6]uintptr{}},
		{"mount", unix.SYS_MOUNT, [6]uintptr{path("none"), path("/tmp"), path("tmpfs")}},
		{"umount2", unix.SYS_UMOUNT2, [6]uintptr{path("/proc"), unix.MNT_DETACH}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{path("."), path("/no/such")}},
		{"chroot", unix.SYS_CHROOT, [6]uintptr{path("/")}},
		{"setns", unix.SYS_SETNS, [6]uintptr{^uintptr(0), 0}},
		{"unshare user", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER}},
		{"unshare nothing", unix.SYS_UNSHARE, [6]uintptr{0}},
		{"clone new user", unix.SYS_CLONE, [6]uintptr{unix.CLONE_NEWUSER | unix.CLONE_THREAD}},
		{"clone3", unix.SYS_CLONE3, [6]uintptr{0, 0}},
		{"keyctl", unix.SYS_KEYCTL, [6]uintptr{0, 0}},
		{"add_key", unix.SYS_ADD_KEY, [6]uintptr{}},
		{"bpf", unix.SYS_BPF, [6]uintptr{0, mem, 0}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{mem, 0, 0, 0, 0}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{^uintptr(0)}},
		{"ptrace", unix.SYS_PTRACE, [6]uintptr{12345, 0}},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [6]uintptr{0}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{}},
		{"reboot", unix.SYS_REBOOT, [6]uintptr{}},
		{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{}},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, [6]uintptr{0, 0}},
		{"sethostname", unix.SYS_SETHOSTNAME, [6]uintptr{mem, 1}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{^uintptr(0), mem, 0}},
		{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, [6]uintptr{^uintptr(0), mem, mem, mem, 0}},
		{"personality", unix.SYS_PERSONALITY, [6]uintptr{0xffffffff}},
		{"personality other", unix.SYS_PERSONALITY, [6]uintptr{0x1234}},
		{"socket vsock", unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}},
		{"socket raw", unix.SYS_SOCKET, [6]uintptr{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}},
		{"socket netlink", unix.SYS_SOCKET, [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW}},
		{"mknod device", unix.SYS_MKNODAT, [6]uintptr{^uintptr(99), path("/tmp/dev"), unix.S_IFCHR | 0o666, 0x103}},
		{"chown", unix.SYS_FCHOWNAT, [6]uintptr{^uintptr(99), path("/tmp"), 0, 0}},
		{"syslog", unix.SYS_SYSLOG, [6]uintptr{3, mem, 100}},
		{"iopl", unix.SYS_ACCT, [6]uintptr{0}},
		{"swapon", unix.SYS_SWAPON, [6]uintptr{0}},
		{"quotactl", unix.SYS_QUOTACTL, [6]uintptr{0}},
		{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{^uintptr(99), path("/"), 1}},
		{"fsopen", unix.SYS_FSOPEN, [6]uintptr{path("tmpfs"), 0}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{1, 0}},
		{"setuid", unix.SYS_SETRESUID, [6]uintptr{0, 0, 0}},
		{"setgroups", unix.SYS_SETGROUPS, [6]uintptr{0, 0}},
		{"setpriority", unix.SYS_SETPRIORITY, [6]uintptr{0, 0, ^uintptr(4)}},
		{"no such call", 999, [6]uintptr{}},
	} {
		_, _, errno := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		fmt.Printf("%s: %d\n", c.name, int(errno))
	}
}

// escape tries the known ways out of a root, and prints where each leads.
func escape() {
	runtime.LockOSThread()
	show := func(way string, err error) {
		if err != nil {
			fmt.Printf("%s: %v\n", way, err)
			return
		}
		fd, err := unix.Open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			fmt.Printf("%s: %v\n", way, err)
			return
		}
		names, _ := os.NewFile(uintptr(fd), ".").Readdirnames(-1)
		slices.Sort(names)
		fmt.Printf("%s: <nil> %s\n", way, strings.Join(names, " "))
	}
	up := func() error {
		for range 20 {
			if err := unix.Chdir(".."); err != nil {
				return err
			}
		}
		return nil
	}
	// A directory that stays open while the root moves below it.
	top, err := unix.Open("/", unix.O_RDONLY, 0)
	if err == nil {
		err = unix.Chroot("/tmp")
	}
	if err == nil {
		err = unix.Fchdir(top)
	}
	if err == nil {
		err = up()
	}
	show("chroot", err)
	_ = unix.Chroot(".")
	// The root of the mount namespace, as setns(2) finds it.
	ns, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY, 0)
	if err == nil {
		err = unix.Unshare(unix.CLONE_FS)
	}
	if err == nil {
		err = unix.Setns(ns, unix.CLONE_NEWNS)
	}
	show("setns", err)
	// What lies under the root, where it can be detached, and under that.
	for n := 1; n <= 3; n++ {
		err = unix.Unmount("/", unix.MNT_DETACH)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNS)
		}
		if err == nil {
			err = up()
		}
		show(fmt.Sprint("umount ", n), err)
	}
}
