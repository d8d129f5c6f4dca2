package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// A user's login session is a cgroup of root's. The user's own systemd has a subtree of its own, and gives a
// part of it to whoever asks: a scope, into which the asking process is moved.

// userBus is the address of the user's message bus; "" where there is none.
func userBus() string {
	if a := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); a != "" {
		return a
	}
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), fmt.Sprintf("/run/user/%d", hostUID())} {
		if dir != "" && exists(dir+"/bus") {
			return "unix:path=" + dbus.EscapeBusAddressValue(dir+"/bus")
		}
	}
	return ""
}

// userDelegated are the controllers that the user's systemd has to give.
func userDelegated(t *tree) (has [controllers]bool) {
	uid := hostUID()
	dir := fmt.Sprintf("%s/user.slice/user-%d.slice/user@%d.service", t.mount, uid, uid)
	have := fields(dir + "/cgroup.controllers")
	for c, name := range v2Names {
		has[c] = name != "" && contains(have, name)
	}
	return has
}

// enterScope asks the user's systemd for a scope and waits until this process is in it. It answers the scope's
// cgroup below the mount point.
func enterScope(ctx context.Context, address, name string) (at string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	bus, err := dbus.Dial(address, dbus.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("user's message bus: %w", err)
	}
	defer func() { _ = bus.Close() }()
	// In a user namespace we are another than the bus sees.
	err = bus.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(hostUID()))})
	if err == nil {
		err = bus.Hello()
	}
	if err != nil {
		return "", fmt.Errorf("user's message bus: %w", err)
	}
	type property struct {
		Name  string
		Value dbus.Variant
	}
	type unit struct {
		Name       string
		Properties []property
	}
	properties := []property{
		{"Description", dbus.MakeVariant("berth: containers of " + strconv.Itoa(os.Getpid()))},
		{"Delegate", dbus.MakeVariant(true)},
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
		{"PIDs", dbus.MakeVariant([]uint32{uint32(os.Getpid())})},
	}
	call := bus.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").
		CallWithContext(ctx, "org.freedesktop.systemd1.Manager.StartTransientUnit", 0, name, "fail", properties, []unit{})
	if call.Err != nil {
		return "", fmt.Errorf("start %s: %w", name, call.Err)
	}
	for {
		if own, err := ownV2(); err != nil || path.Base(own) == name {
			return own, err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("start %s: this process was not moved into it: %w", name, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// ownV2 is the v2 cgroup of this process, as our cgroup namespace shows it.
func ownV2() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	if p, ok := parseOwn(b)["v2"]; ok {
		return p, nil
	}
	return "", errors.New("/proc/self/cgroup names no v2 cgroup")
}

// hostUID is our user id outside the user namespace that we are in.
func hostUID() int {
	uid := int64(os.Geteuid())
	for _, m := range idMaps() {
		if uid >= m[0] && uid < m[0]+m[2] {
			return int(uid - m[0] + m[1])
		}
	}
	return int(uid)
}

// idMaps are the lines of /proc/self/uid_map: first id inside, first id outside, count.
func idMaps() [][3]int64 {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return nil // a kernel without user namespaces
	}
	return parseIDMaps(string(b))
}

func parseIDMaps(s string) (maps [][3]int64) {
	for line := range strings.Lines(s) {
		var m [3]int64
		if n, err := fmt.Sscan(line, &m[0], &m[1], &m[2]); n == 3 && err == nil {
			maps = append(maps, m)
		}
	}
	return maps
}

// ownsHost reports whether this process is not in a user namespace.
func ownsHost() bool {
	maps := idMaps()
	return maps == nil || len(maps) == 1 && maps[0] == [3]int64{0, 0, 1<<32 - 1}
}

// swaps reports whether the host has swap space.
func swaps() bool {
	b, err := os.ReadFile("/proc/swaps")
	return err == nil && strings.Count(string(b), "\n") > 1
}
