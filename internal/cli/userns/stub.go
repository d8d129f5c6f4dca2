package userns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The image of the stub: an ELF header, one segment, the code, and from dataOffset on the data.
const (
	loadAddress = 0x400000
	dataOffset  = 0x400 // DATA_FDS in the assembly
	headerSize  = 64
	segmentSize = 56
	codeOffset  = headerSize + segmentSize
	codeEnd     = "berth-stub-end!!"
)

// codeAddress is where code lies; a Go function value would be that of a wrapper.
var codeAddress uintptr

// code is the program. It is never called; codeAddress is where it lies.
func code() //nolint:unused // named by the assembly

// stub returns the image, which writes to and reads from two descriptors and then executes path.
func stub(write, read int, path string) []byte {
	machine := map[string]uint16{"amd64": 62, "arm64": 183}[runtime.GOARCH]
	text := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&codeAddress))), dataOffset-codeOffset)
	text = text[:max(0, bytes.Index(text, []byte(codeEnd)))]
	if len(text) == 0 {
		panic("userns: the stub has no end")
	}
	size := uint64(dataOffset + 8 + len(path) + 1)
	var b bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			_ = binary.Write(&b, binary.LittleEndian, v) // a bytes.Buffer takes all
		}
	}
	// struct Elf64_Ehdr: 64 bits, little-endian, executable at a fixed address, no sections.
	put([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9), uint16(2), machine, uint32(1))
	put(uint64(loadAddress+codeOffset), uint64(headerSize), uint64(0), uint32(0))
	put(uint16(headerSize), uint16(segmentSize), uint16(1), uint16(0), uint16(0), uint16(0))
	// struct Elf64_Phdr: the whole file, to be read and executed.
	put(uint32(1), uint32(5), uint64(0), uint64(loadAddress), uint64(loadAddress), size, size, uint64(0x10000))
	put(text, make([]byte, dataOffset-codeOffset-len(text)))
	put(int32(write), int32(read), []byte(path), byte(0))
	return b.Bytes()
}

// memfd puts an image into an anonymous file that can be executed.
func memfd(image []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("berth-userns", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 all memfds may be executed
		fd, err = unix.MemfdCreate("berth-userns", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "berth-userns")
	if _, err = f.Write(image); err == nil {
		err = unix.Fchmod(fd, 0o555)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
