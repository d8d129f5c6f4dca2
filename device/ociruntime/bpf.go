package ociruntime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// maxPrograms bounds how many programs of one cgroup are extended, as the kernel does.
const maxPrograms = 64

// allowV2 replaces each program that bounds the devices of a v2 cgroup by one that allows some nodes and leaves all
// else to the old one. Of several programs all must allow. Without any there is nothing to extend.
func allowV2(dir string, nodes []oci.LinuxDevice) error {
	cgroup, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(cgroup) }()
	ids, flags, err := attached(cgroup)
	if err != nil {
		return fmt.Errorf("%w: its programs cannot be listed: %w", berth.ErrUnsupported, err)
	}
	for _, id := range ids {
		if err := extend(cgroup, id, flags, nodes); err != nil {
			return fmt.Errorf("%w: its program %d cannot be extended: %w; have berth oci-runtime make the container", berth.ErrUnsupported, id, err)
		}
	}
	return nil
}

// attached lists the programs of a cgroup itself.
func attached(cgroup int) (ids []uint32, flags uint32, err error) {
	ids = make([]uint32, maxPrograms)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&ids[0])
	attr := struct {
		target, typ, queryFlags, attachFlags uint32
		ids                                  uint64
		count, _                             uint32
	}{target: uint32(cgroup), typ: unix.BPF_CGROUP_DEVICE, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: maxPrograms}
	if _, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return nil, 0, err
	}
	return ids[:attr.count], attr.attachFlags, nil
}

// extend puts an extended program in a program's place.
func extend(cgroup int, id, flags uint32, nodes []oci.LinuxDevice) error {
	byID := struct{ id, next, flags uint32 }{id: id}
	old, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&byID), unsafe.Sizeof(byID))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(old) }()
	code, err := instructions(old)
	if err != nil {
		return err
	}
	program, err := load(append(prologue(nodes), code...))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(program) }()
	attr := struct{ target, program, typ, flags, replace uint32 }{
		target: uint32(cgroup), program: uint32(program), typ: unix.BPF_CGROUP_DEVICE, flags: flags,
	}
	if flags&unix.BPF_F_ALLOW_MULTI != 0 {
		attr.flags, attr.replace = attr.flags|unix.BPF_F_REPLACE, uint32(old)
	}
	_, err = bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// instructions reads a program back, as the kernel runs it.
func instructions(program int) ([]byte, error) {
	code := []byte(nil)
	var pin runtime.Pinner
	defer pin.Unpin()
	for range 2 { // the first time for the size
		info := struct { // the beginning of struct bpf_prog_info
			typ, id         uint32
			tag             [8]byte
			jitedLen, xlLen uint32
			jited, xl       uint64
		}{}
		if code != nil {
			pin.Pin(&code[0])
			info.xlLen, info.xl = uint32(len(code)), uint64(uintptr(unsafe.Pointer(&code[0])))
		}
		pin.Pin(&info)
		attr := struct {
			fd, len uint32
			info    uint64
		}{uint32(program), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info)))}
		if _, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
			return nil, err
		}
		switch {
		case info.xlLen == 0 || code != nil && info.xl == 0:
			return nil, errors.New("the kernel does not show it")
		case code == nil:
			code = make([]byte, info.xlLen)
		}
	}
	return code, nil
}

const (
	instructionSize = 8
	loadWord        = unix.BPF_LDX | unix.BPF_W | unix.BPF_MEM
	movImm          = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	andImm          = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	jumpNE          = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	exit            = unix.BPF_JMP | unix.BPF_EXIT
)

// prologue allows nodes and falls through for all others. It touches no register that the program behind it
// expects something in: that is the first alone, which points to
// struct { u32 access_type; u32 major; u32 minor; }, with the node's type in the lower half of the first.
func prologue(nodes []oci.LinuxDevice) []byte {
	const typ, major, minor = 2, 3, 4
	var b []byte
	add := func(op, dst, src byte, off int16, imm int64) {
		b = append(b, op, dst|src<<4)
		b = binary.NativeEndian.AppendUint16(b, uint16(off))
		b = binary.NativeEndian.AppendUint32(b, uint32(imm))
	}
	add(loadWord, typ, 1, 0, 0)
	add(andImm, typ, 0, 0, 0xffff)
	add(loadWord, major, 1, 4, 0)
	add(loadWord, minor, 1, 8, 0)
	for _, n := range nodes {
		kind := int64(unix.BPF_DEVCG_DEV_CHAR)
		if n.Type == "b" {
			kind = unix.BPF_DEVCG_DEV_BLOCK
		}
		add(jumpNE, typ, 0, 4, kind)
		add(jumpNE, major, 0, 3, n.Major)
		add(jumpNE, minor, 0, 2, n.Minor)
		add(movImm, 0, 0, 0, 1)
		add(exit, 0, 0, 0, 0)
	}
	return b
}

func load(code []byte) (fd int, err error) {
	license := []byte("Apache-2.0\x00") // no function is called that would ask for GPL
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	attr := struct {
		typ, count        uint32
		code, license     uint64
		logLevel, logSize uint32
		log               uint64
	}{
		typ: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / instructionSize),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	return bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// bpf is bpf(2). The verifier gives up with EAGAIN when a signal arrives, and Go's runtime sends itself signals.
func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for try := 0; ; try++ {
		r, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
		switch {
		case errno == 0:
			return int(r), nil
		case try < 100 && (errors.Is(errno, unix.EAGAIN) || errors.Is(errno, unix.EINTR)):
		default:
			return -1, os.NewSyscallError("bpf", errno)
		}
	}
}
