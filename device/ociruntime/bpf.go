package ociruntime

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/program"
)

// allowV2 replaces each program that bounds the devices of a v2 cgroup by one that allows some nodes and leaves all
// else to the old one. Of several programs all must allow. Without any there is nothing to extend.
func allowV2(dir string, nodes []berth.Node) error {
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	ids, flags, err := program.Attached(cgroup)
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

// extend puts an extended program in a program's place.
func extend(cgroup *os.File, id, flags uint32, nodes []berth.Node) error {
	old, err := program.ByID(id)
	if err != nil {
		return err
	}
	defer func() { _ = old.Close() }()
	code, err := old.Code()
	if err != nil {
		return err
	}
	p, err := program.Load(append(prologue(nodes), code...))
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	return p.Attach(cgroup, flags, old)
}

const (
	loadWord = unix.BPF_LDX | unix.BPF_W | unix.BPF_MEM
	movImm   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	movReg   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	andImm   = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	shiftImm = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	jumpNE   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	exit     = unix.BPF_JMP | unix.BPF_EXIT
)

// prologue allows nodes and falls through for all others. It touches no register that the program behind it
// expects something in: that is the first alone, which points to
// struct { u32 access_type; u32 major; u32 minor; }, with the node's type in the lower half of the first.
func prologue(nodes []berth.Node) []byte {
	const typ, major, minor, access = 2, 3, 4, 5
	var b []byte
	add := func(op, dst, src byte, off int16, imm int64) {
		b = append(b, op, dst|src<<4)
		b = binary.NativeEndian.AppendUint16(b, uint16(off))
		b = binary.NativeEndian.AppendUint32(b, uint32(imm))
	}
	add(loadWord, typ, 1, 0, 0)
	add(movReg, access, typ, 0, 0)
	add(shiftImm, access, 0, 0, 16)
	add(andImm, typ, 0, 0, 0xffff)
	add(loadWord, major, 1, 4, 0)
	add(loadWord, minor, 1, 8, 0)
	for _, n := range nodes {
		kind := int64(unix.BPF_DEVCG_DEV_CHAR)
		if n.Type == "b" {
			kind = unix.BPF_DEVCG_DEV_BLOCK
		}
		beyond := int64(0) // what may not be done with it
		for i, a := range "mrw" {
			if !strings.ContainsRune(n.Permissions, a) {
				beyond |= 1 << i
			}
		}
		add(jumpNE, typ, 0, 7, kind)
		add(jumpNE, major, 0, 6, int64(n.Major))
		add(jumpNE, minor, 0, 5, int64(n.Minor))
		add(movReg, 0, access, 0, 0)
		add(andImm, 0, 0, 0, beyond)
		add(jumpNE, 0, 0, 2, 0)
		add(movImm, 0, 0, 0, 1)
		add(exit, 0, 0, 0, 0)
	}
	return b
}
