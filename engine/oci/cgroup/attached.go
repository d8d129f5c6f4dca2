package cgroup

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrOtherRules says that the device rules of a group are not those that were looked for.
var ErrOtherRules = errors.New("the program of these device rules is not attached to the container's cgroup")

// programs is how many programs may hold for a group: its own, and those of the cgroups above.
const programs = 64

// HoldsRules demands of a v2 group that the program of exactly these rules, as in Spec.Devices, holds for it. What
// other programs hold as well can only deny more. ErrOtherRules where there is none.
func (g *Group) HoldsRules(devices []specs.LinuxDeviceCgroup) error {
	set, err := parseRules(devices)
	if err != nil {
		return err
	}
	// The kernel's own digest of the same instructions: how it is made has changed.
	fd, err := load(set.program())
	if err != nil {
		return err
	}
	want, err := tagOf(fd)
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	tags, err := attached(g.v2)
	if err != nil {
		return err
	}
	if !slices.Contains(tags, want) {
		return fmt.Errorf("%w %s", ErrOtherRules, g.v2)
	}
	return nil
}

// tag is the kernel's digest of a program.
type tag [8]byte

// tagOf is the tag of a loaded program.
func tagOf(fd int) (tag, error) {
	var info struct {
		typ, id uint32
		tag     tag
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&info)
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info)))}
	_, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return info.tag, err
}

// attached are the tags of all programs that hold device rules for a v2 cgroup.
func attached(dir string) ([]tag, error) {
	cgroup, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(cgroup) }()
	var ids [programs]uint32
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids)
	query := struct {
		target, typ, flags, attachFlags uint32
		ids                             uint64
		count, _                        uint32
	}{target: uint32(cgroup), typ: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_QUERY_EFFECTIVE, ids: uint64(uintptr(unsafe.Pointer(&ids))), count: programs}
	if _, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&query), unsafe.Sizeof(query)); err != nil {
		return nil, fmt.Errorf("device rules of %s: %w", dir, err)
	}
	var tags []tag
	for _, id := range ids[:min(query.count, programs)] {
		attr := struct{ id, next, flags uint32 }{id: id}
		fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if err != nil {
			return nil, fmt.Errorf("device rules of %s: %w", dir, err)
		}
		t, err := tagOf(fd)
		_ = unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("device rules of %s: %w", dir, err)
		}
		tags = append(tags, t)
	}
	return tags, nil
}
