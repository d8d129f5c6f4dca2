package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// identity is who this process is, as the rest of the host sees it.
type identity struct {
	boot     string // the kernel's boot id
	pid      int
	pidns    uint64 // inode of the pid namespace
	uid      uint32 // in this user namespace
	hostUID  uint32 // of the same user outside of it
	userns   bool   // in a user namespace: files of users who are not mapped show overflowUID
	hostRoot bool
}

// overflowUID is what the kernel shows for an owner who has no number in this user namespace.
const overflowUID = 65534

func whoami() (identity, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	var ns syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &ns); err != nil {
		return identity{}, fmt.Errorf("stat /proc/self/ns/pid: %w", err)
	}
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return identity{}, err
	}
	id := identity{
		boot: strings.TrimSpace(string(boot)), pid: os.Getpid(), pidns: ns.Ino, uid: uint32(os.Geteuid()),
	}
	id.hostUID, id.userns = outside(uidMap, id.uid)
	id.hostRoot = id.uid == 0 && !id.userns
	return id, nil
}

// outside translates a uid by a /proc/PID/uid_map, and reports whether that is a real user namespace.
func outside(uidMap []byte, uid uint32) (host uint32, userns bool) {
	host = overflowUID
	userns = true
	for line := range bytes.Lines(uidMap) {
		var in, out, n uint32
		if _, err := fmt.Sscan(string(line), &in, &out, &n); err != nil {
			continue
		}
		if in == 0 && out == 0 && n == 1<<32-1 {
			return uid, false
		}
		if uid >= in && uid-in < n {
			host = out + (uid - in)
		}
	}
	return host, userns
}

func (id identity) isMe(uid uint32) bool { return uid == id.uid }

// hidden reports whether uid stands for somebody whom this user namespace cannot name.
func (id identity) hidden(uid uint32) bool { return id.userns && uid == overflowUID }

// errNoStart: the process is there, and its start cannot be seen (a /proc that hides other users').
var errNoStart = errors.New("start time cannot be read")

// startTime is when process pid started, in clock ticks since boot, and whether it is a zombie.
func startTime(pid int) (ticks uint64, zombie bool, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, fmt.Errorf("%w: %w", errNoStart, err)
	}
	// The name, in parentheses, may hold anything, blanks and parentheses too.
	i := bytes.LastIndexByte(data, ')')
	fields := bytes.Fields(data[i+1:])
	if i < 0 || len(fields) < 20 {
		return 0, false, errNoStart
	}
	ticks, err = strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0, false, errNoStart
	}
	return ticks, fields[0][0] == 'Z' || fields[0][0] == 'X', nil
}
