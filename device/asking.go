package device

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// asks is what the command line says of a process of berth's that asks a driver's library how GPUs are: the library opens
// the nodes of those that it is asked of, and perhaps of others.
var asks = [][]string{{"gpu", "meter"}, {"gpu", "nvml"}}

// askingMost is for how long a process that asks once may be there.
const askingMost = 30 * time.Second

// program is a file that runs, by device and inode.
type program struct{ dev, ino uint64 }

// berthPrograms are the files of berth's programs: this one, and those beside it that are its owner's and that nobody else
// can write.
func berthPrograms() []program {
	var all []program
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return nil
	}
	st, ok := own.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	all = append(all, program{st.Dev, st.Ino})
	file, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return all
	}
	for _, name := range []string{"berth", "berth-oci-runtime"} {
		info, err := os.Stat(filepath.Join(filepath.Dir(file), name))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o022 != 0 {
			continue
		}
		if o, ok := info.Sys().(*syscall.Stat_t); ok && o.Uid == st.Uid {
			all = append(all, program{o.Dev, o.Ino})
		}
	}
	return all
}

// asking tells of a process that has a GPU open whether it is berth, asking a driver's library. Its name and command line
// are whatever it likes, so its file must be one of berth's, and it must be of no container.
//
// always is that it is passed over whatever it has open: root's, and for a while any user's, who could have what is not
// berth run from berth's file. That of a user which stays is passed over on what that user's tasks were lent: there it
// could do as it likes anyway.
func (p Process) asking(of []program) (is, always bool) {
	dir := fmt.Sprintf("/proc/%d/", p.PID)
	line, err := os.ReadFile(dir + "cmdline")
	if err != nil || !slices.ContainsFunc(asks, func(words []string) bool {
		return bytes.Contains(line, []byte("\x00"+strings.Join(words, "\x00")+"\x00"))
	}) {
		return false, false
	}
	info, err := os.Stat(dir + "exe")
	if err != nil {
		return false, false
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !slices.Contains(of, program{st.Dev, st.Ino}) {
		return false, false
	}
	own, errOwn := os.Readlink("/proc/self/ns/pid")
	if ns, err := os.Readlink(dir + "ns/pid"); err != nil || errOwn != nil || ns != own {
		return false, false
	}
	return true, p.UID == 0 || age(p.PID) < askingMost
}

// age is for how long a process has run; for ever where that is not known.
func age(pid int) time.Duration {
	const never = time.Duration(1<<63 - 1)
	const startField, hertz = 19, 100 // after the name; clock ticks a second, in which every kernel counts here
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return never
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	var now unix.Timespec
	if len(fields) <= startField || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return never
	}
	ticks, err := strconv.ParseInt(fields[startField], 10, 64)
	if err != nil {
		return never
	}
	return time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/hertz)
}
