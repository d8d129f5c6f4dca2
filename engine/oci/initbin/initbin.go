package initbin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Arg0 is the first of the arguments with which the image is executed; the command and its own follow.
const Arg0 = "berth-init"

// ReportFD is the descriptor of the report pipe.
const ReportFD = 3

// Kind says what a Record reports.
type Kind uint32

// The kinds of record. One of ExecFailed and Executed comes first; Ended comes last, if init itself lives on.
const (
	ExecFailed Kind = 1 // Value is the errno. Nothing ran
	Executed   Kind = 2 // Value is the pid of the command, in init's pid namespace
	Ended      Kind = 3 // Value is the command's wait status, as wait(2) has it
)

// Record is one line of what init reports: 8 bytes, each word little-endian, written at once.
type Record struct {
	Kind  Kind
	Value uint32
}

// ReadRecord reads the next record. io.EOF says that init has ended, or was killed.
func ReadRecord(r io.Reader) (Record, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Record{}, err
	}
	return Record{Kind(binary.LittleEndian.Uint32(b[:])), binary.LittleEndian.Uint32(b[4:])}, nil
}

// The text segment holds the code from codeAddress on; the mark is where it ends.
const (
	mark    = "berth-init-end!!"
	codeMax = 4096 - headers
)

// codeAddress is where code lies; a Go function value would be that of a wrapper.
var codeAddress uintptr

// code is the program. It is never called.
func code() //nolint:unused // init_*.s defines it, and refers to it

// text returns the program's machine code.
func text() []byte {
	mem := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&codeAddress))), codeMax)
	program, _, found := bytes.Cut(mem, []byte(mark))
	if !found {
		panic("initbin: the code has no end")
	}
	return program
}

const (
	headerSize  = 64
	segmentSize = 56
	headers     = headerSize + 2*segmentSize
)

// ELF returns the image: a static, position-independent program for this machine, in one page. The slice is
// the caller's.
func ELF() []byte {
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

// Memfd returns the image as an anonymous file that nobody can change, for execveat(2): one for all
// containers. The caller closes it.
func Memfd() (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(Arg0, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 all memfds may be executed
		fd, err = unix.MemfdCreate(Arg0, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd of berth's init: %w", err)
	}
	f := os.NewFile(uintptr(fd), Arg0)
	_, err = f.Write(ELF())
	if err == nil {
		err = unix.Fchmod(fd, 0o555)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("memfd of berth's init: %w", err), f.Close())
	}
	return f, nil
}
