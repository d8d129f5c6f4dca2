// Package trampoline is a program of some 150 bytes of machine code through which a container's command is
// executed where there is no init.
//
// A process that executes a file of an image must not be berth any more: an image can name /proc/self/exe as
// its command, or as the interpreter of it, and would lay hands on berth's own binary on the host
// (CVE-2019-5736). So the process first becomes this program, which lies in a sealed memfd, and it is the
// program that looks for the command.
//
// It is executed as
//
//	execve(image, {CANDIDATE..., "", ARGV0, ARG...}, ENVIRONMENT)
//
// and tries the candidates, which are paths, in turn, each with the arguments behind the empty one. Descriptor
// 3 is a pipe that the command does not inherit. If no candidate can be executed, it writes the errno to the
// pipe, as four bytes in the machine's order, and ends with 127; ENOENT gives way to any other errno, and
// EACCES to any but ENOENT.
package trampoline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// name is what the kernel calls the memfd.
const name = "berth-exec"

// The text segment holds the code from codeAddress on; the mark is where it ends.
const (
	mark    = "berth-exec-end!!"
	codeMax = 1024
)

// codeAddress is where code lies; a Go function value would be that of a wrapper.
var codeAddress uintptr

// code is the program. It is never called.
func code() //nolint:unused // the assembly refers to it

func text() []byte {
	mem := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&codeAddress))), codeMax)
	program, _, found := bytes.Cut(mem, []byte(mark))
	if !found {
		panic("trampoline: the code has no end")
	}
	return program
}

const (
	headerSize  = 64
	segmentSize = 56
	headers     = headerSize + 2*segmentSize
)

// elf is a static, position-independent image.
func elf() []byte {
	program := text()
	size := uint64(headers + len(program))
	var b bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			_ = binary.Write(&b, binary.LittleEndian, v) // a bytes.Buffer takes all
		}
	}
	// struct Elf64_Ehdr: 64 bits, little-endian, shared object (it may lie anywhere), no sections.
	put([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9), uint16(3), elfMachine, uint32(1))
	put(uint64(headers), uint64(headerSize), uint64(0), uint32(0))
	put(uint16(headerSize), uint16(segmentSize), uint16(2), uint16(0), uint16(0), uint16(0))
	// struct Elf64_Phdr, twice: the file, to be read and executed; and that the stack is not to be executed.
	put(uint32(1), uint32(5), uint64(0), uint64(0), uint64(0), size, size, segmentAlign)
	put(uint32(0x6474e551), uint32(6), uint64(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(16))
	put(program)
	return b.Bytes()
}

// Memfd returns the program as an anonymous file that nobody can change, for execveat(2). The caller closes it.
func Memfd() (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 all memfds may be executed
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd of the trampoline: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(elf())
	if err == nil {
		err = unix.Fchmod(fd, 0o555)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("memfd of the trampoline: %w", err), f.Close())
	}
	return f, nil
}
