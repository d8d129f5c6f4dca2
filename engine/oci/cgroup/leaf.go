package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// leaf is the cgroup that processes of ours are moved into: one that has processes cannot give controllers to
// its children, but for the root of the whole host.
const leaf = "_self"

// intoLeaf moves this process, and the others of this program, out of dir into a child of it. It moves nothing
// where there are processes that are not ours, EBUSY.
func intoLeaf(dir string) error {
	if alien := strangers(dir); len(alien) > 0 {
		return fmt.Errorf("%s has other processes: %s: %w", dir, strings.Join(alien, ", "), unix.EBUSY)
	}
	if err := os.Mkdir(dir+"/"+leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return moveAll(dir, dir+"/"+leaf)
}

// outOfLeaf is the reverse of intoLeaf. It moves nothing while other cgroups in dir use its controllers.
func outOfLeaf(dir string) error {
	for _, name := range fields(dir + "/cgroup.subtree_control") {
		if err := write(dir+"/cgroup.subtree_control", "-"+name); err != nil {
			return err
		}
	}
	if err := moveAll(dir+"/"+leaf, dir); err != nil {
		return err
	}
	return os.Remove(dir + "/" + leaf)
}

// moveAll moves the processes of one cgroup into another, with those that they start meanwhile.
func moveAll(from, to string) error {
	for range 100 {
		procs := fields(from + "/cgroup.procs")
		if len(procs) == 0 {
			return nil
		}
		for _, pid := range procs {
			if err := write(to+"/cgroup.procs", pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return fmt.Errorf("move the processes of %s: %w", from, unix.EBUSY)
}

// strangers are the processes in dir that are not of this program, as "bash (123)". Of one in another user
// namespace the kernel does not tell the program, so it is a stranger too.
func strangers(dir string) []string {
	var self unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &self); err != nil {
		return []string{err.Error()}
	}
	var alien []string
	for _, pid := range fields(dir + "/cgroup.procs") {
		proc := "/proc/" + pid
		if n, err := strconv.Atoi(pid); err != nil || n <= 0 {
			alien = append(alien, "one outside of this pid namespace")
			continue
		}
		var st unix.Stat_t
		err := unix.Stat(proc+"/exe", &st)
		if err == nil && st.Dev == self.Dev && st.Ino == self.Ino || !exists(proc) {
			continue
		}
		name, err := os.ReadFile(proc + "/comm")
		if err != nil {
			continue // it has ended
		}
		alien = append(alien, fmt.Sprintf("%s (%s)", strings.TrimSpace(string(name)), pid))
	}
	return alien
}
