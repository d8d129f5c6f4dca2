package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// HelperName is the name (argv[0]) of the process that maps the ids.
const HelperName = "berth-userns"

// marker is the variable by which a process knows that it was executed by Enter, with the helper's pid. It
// does not begin with BERTH_: it is no setting.
const marker = "_BERTH_USERNS"

// Needed reports whether this process is not root, neither of the machine nor of a user namespace.
func Needed() bool { return os.Geteuid() != 0 }

// Enter executes this program again, with the same arguments and environment, as root of a new user
// namespace. It returns only if it could not: ErrDenied, with the remedy. Where the host refuses the
// namespace itself, a child has said so on standard error, and the process ends with exit code code.
func Enter(code int) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("enter a user namespace: %w", err)
	}
	toHelper, fromStub, err := pipe()
	if err != nil {
		return err
	}
	fromHelper, toStub, err := pipe()
	if err != nil {
		return err
	}
	image, err := memfd(stub(int(fromStub.Fd()), int(fromHelper.Fd()), self))
	if err != nil {
		return fmt.Errorf("enter a user namespace: %w: %w", berth.ErrDenied, err)
	}
	helper := exec.Cmd{ // not CommandContext: it ends with its pipe
		Path: "/proc/self/exe", Args: []string{HelperName, strconv.Itoa(os.Getpid()), strconv.Itoa(code)}, Env: os.Environ(),
		Stderr: os.Stderr, ExtraFiles: []*os.File{toHelper, toStub}, Dir: "/",
	}
	if err := helper.Start(); err != nil {
		return fmt.Errorf("enter a user namespace: %w: %w", berth.ErrUnavailable, err)
	}
	_, _ = toHelper.Close(), toStub.Close()
	for _, f := range []*os.File{fromStub, fromHelper} {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("enter a user namespace: %w", err)
		}
	}
	env := append(os.Environ(), marker+"="+strconv.Itoa(helper.Process.Pid))
	err = syscall.Exec("/proc/self/fd/"+strconv.Itoa(int(image.Fd())), os.Args, env) //nolint:gosec // our own image
	_ = helper.Process.Kill()
	_ = helper.Wait()
	remedy := ""
	if errors.Is(err, unix.EACCES) {
		remedy = " (is vm.memfd_noexec set to 2, or /proc mounted with noexec?)"
	}
	return fmt.Errorf("enter a user namespace: %w: execute: %w%s", berth.ErrDenied, err, remedy)
}

func pipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		err = fmt.Errorf("enter a user namespace: %w", err)
	}
	return r, w, err
}

// Entered reports whether this process was executed by Enter. It reaps the helper and clears the marker, so
// that what berth starts does not see it.
func Entered() bool {
	pid, err := strconv.Atoi(os.Getenv(marker))
	if err != nil || os.Geteuid() != 0 {
		return false
	}
	_ = os.Unsetenv(marker)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return true
		}
	}
}

// HelperMain runs the helper and ends the process, if that is what this process was started for: by the
// name HelperName. Otherwise it returns at once. A program that calls Enter calls it first thing in main.
func HelperMain() {
	if len(os.Args) != 3 || os.Args[0] != HelperName {
		return
	}
	os.Exit(help(os.Args[1], os.Args[2]))
}

// help maps the ids of the stub with the process id pid.
func help(pid, code string) int {
	if pid == probeWord {
		return 0
	}
	fromStub, toStub := os.NewFile(3, "stub"), os.NewFile(4, "stub")
	var said [1]byte
	if n, _ := fromStub.Read(said[:]); n != 1 {
		return 1 // it was killed, or never executed
	}
	var err error
	if said[0] != 0 {
		err = refused(unix.Errno(said[0]))
	} else {
		err = mapIDs(pid)
	}
	answer := [1]byte{}
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "berth: %v\n", err)
		n, _ := strconv.Atoi(code)
		answer[0] = byte(n)
	}
	_, _ = toStub.Write(answer[:])
	return 0
}

// Refused says why this user can make no user namespace here, with the remedy; "" if it can.
func Refused() string {
	cmd := exec.Cmd{Path: "/proc/self/exe", Args: []string{HelperName, probeWord, ""}, SysProcAttr: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}}
	var errno unix.Errno
	if err := cmd.Run(); errors.As(err, &errno) {
		return refused(errno).Error()
	}
	return ""
}

// probeWord stands for the process id where the helper has nothing to do.
const probeWord = "probe"

// refused says why there is no user namespace, and what to do.
func refused(errno unix.Errno) error {
	remedy := "run berth as root"
	for _, r := range []struct{ file, when, remedy string }{
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for berth that allows userns"},
	} {
		if raw, err := os.ReadFile(r.file); err == nil && strings.TrimSpace(string(raw)) == r.when {
			remedy = "as root: " + r.remedy
			break
		}
	}
	return fmt.Errorf("user namespaces: %w: this host does not let you make one: %w; %s", berth.ErrDenied, errno, remedy)
}
