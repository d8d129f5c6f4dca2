package hook

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"slices"
)

// library is what the dynamic linker's cache needs to know of an ELF file.
type library struct {
	flags  uint32 // kind and architecture, as glibc's cache has them
	soname string // "" if the file names none
}

// The standard library's debug/elf takes sizes from the file and allocates by them. What is here reads a bounded
// number of bytes, wherever a hostile file leads it.
const (
	maxHeaders = 4096
	maxDynamic = 64 << 10
	maxNote    = 64 << 10
	maxName    = 255
)

var errNotELF = errors.New("no ELF file of a kind that this machine runs")

// elfFile reads little-endian ELF files of 32 and 64 bits.
type elfFile struct {
	r       io.ReaderAt
	wide    bool
	machine uint16

	phoff, shoff               uint64
	phentsize, phnum           int
	shentsize, shnum, shstrndx int
}

func openELF(r io.ReaderAt) (*elfFile, error) {
	var h [64]byte
	if n, err := r.ReadAt(h[:], 0); n < 52 && err != nil {
		return nil, errNotELF
	}
	if string(h[:4]) != "\x7fELF" || h[5] != 1 || h[4] != 1 && h[4] != 2 {
		return nil, errNotELF
	}
	le := binary.LittleEndian
	f := &elfFile{r: r, wide: h[4] == 2, machine: le.Uint16(h[18:])}
	tail := h[42:] // from e_phentsize
	if f.wide {
		f.phoff, f.shoff, tail = le.Uint64(h[32:]), le.Uint64(h[40:]), h[54:]
	} else {
		f.phoff, f.shoff = uint64(le.Uint32(h[28:])), uint64(le.Uint32(h[32:]))
	}
	f.phentsize, f.phnum = int(le.Uint16(tail)), int(le.Uint16(tail[2:]))
	f.shentsize, f.shnum, f.shstrndx = int(le.Uint16(tail[4:])), int(le.Uint16(tail[6:])), int(le.Uint16(tail[8:]))
	if le.Uint16(h[16:]) != 3 { // a shared object
		return nil, errNotELF
	}
	return f, nil
}

// at reads n bytes.
func (f *elfFile) at(off uint64, n int) ([]byte, error) {
	if off > 1<<62 || n < 0 || n > 1<<20 {
		return nil, errNotELF
	}
	b := make([]byte, n)
	if got, err := f.r.ReadAt(b, int64(off)); got < n {
		return nil, errors.Join(errNotELF, err)
	}
	return b, nil
}

// text reads a string that ends with a zero byte.
func (f *elfFile) text(off uint64) (string, error) {
	if off > 1<<62 {
		return "", errNotELF
	}
	b := make([]byte, maxName+1)
	n, err := f.r.ReadAt(b, int64(off))
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	end := bytes.IndexByte(b[:n], 0)
	if end < 0 {
		return "", errNotELF
	}
	return string(b[:end]), nil
}

// word reads a number of the file's own width.
func (f *elfFile) word(b []byte) uint64 {
	if f.wide {
		return binary.LittleEndian.Uint64(b)
	}
	return uint64(binary.LittleEndian.Uint32(b))
}

// segment is a program header.
type segment struct {
	kind                uint32
	off, vaddr, sizeInF uint64
}

func (f *elfFile) segments() ([]segment, error) {
	size := 32
	if f.wide {
		size = 56
	}
	if f.phentsize != size || f.phnum > maxHeaders {
		return nil, errNotELF
	}
	b, err := f.at(f.phoff, f.phnum*size)
	if err != nil {
		return nil, err
	}
	segments := make([]segment, f.phnum)
	for i := range segments {
		h := b[i*size:]
		s := segment{kind: binary.LittleEndian.Uint32(h)}
		if f.wide {
			s.off, s.vaddr, s.sizeInF = f.word(h[8:]), f.word(h[16:]), f.word(h[32:])
		} else {
			s.off, s.vaddr, s.sizeInF = f.word(h[4:]), f.word(h[8:]), f.word(h[16:])
		}
		segments[i] = s
	}
	return segments, nil
}

// readLibrary reads the name and kind of a shared library.
func readLibrary(r io.ReaderAt) (library, error) {
	f, err := openELF(r)
	if err != nil {
		return library{}, err
	}
	l := library{flags: cacheFlags(f.machine, f.wide)}
	if l.flags == 0 {
		return library{}, errNotELF
	}
	segments, err := f.segments()
	if err != nil {
		return library{}, err
	}
	for _, s := range segments {
		if s.kind != 2 { // PT_DYNAMIC
			continue
		}
		dynamic, err := f.at(s.off, int(min(s.sizeInF, maxDynamic)))
		if err != nil {
			return library{}, err
		}
		l.soname, err = f.soname(segments, dynamic)
		return l, err
	}
	return library{}, errNotELF
}

func (f *elfFile) soname(segments []segment, dynamic []byte) (string, error) {
	width := 4
	if f.wide {
		width = 8
	}
	var name, table uint64
	named := false
	for e := range slices.Chunk(dynamic[:len(dynamic)/(2*width)*2*width], 2*width) {
		tag, value := f.word(e), f.word(e[width:])
		if tag == 0 { // DT_NULL
			break
		}
		switch tag {
		case 5: // DT_STRTAB
			table = value
		case 14: // DT_SONAME
			name, named = value, true
		}
	}
	if !named {
		return "", nil
	}
	for _, s := range segments {
		if s.kind == 1 && table >= s.vaddr && table-s.vaddr < s.sizeInF { // PT_LOAD
			return f.text(s.off + (table - s.vaddr) + name)
		}
	}
	return "", errNotELF
}

// cacheFlags is how glibc's cache names a library for glibc 2 and an architecture; 0 for those that do not run
// on this machine.
func cacheFlags(machine uint16, wide bool) uint32 {
	const libc6 = 0x0003
	switch {
	case runtime.GOARCH == "amd64" && machine == 62 && wide:
		return libc6 | 0x0300
	case runtime.GOARCH == "amd64" && machine == 62:
		return libc6 | 0x0800 // x32
	case runtime.GOARCH == "amd64" && machine == 3 && !wide:
		return libc6
	case runtime.GOARCH == "arm64" && machine == 183 && wide:
		return libc6 | 0x0a00
	default:
		return 0
	}
}

// note reads the description in the note section of the given name; nil if there is none.
func note(r io.ReaderAt, section, owner string) ([]byte, error) {
	f, err := openELF(r)
	if err != nil {
		return nil, err
	}
	size, wanted := 40, uint32(7) // SHT_NOTE
	if f.wide {
		size = 64
	}
	if f.shnum == 0 {
		return nil, nil
	}
	if f.shentsize != size || f.shnum > maxHeaders || f.shstrndx >= f.shnum {
		return nil, errNotELF
	}
	headers, err := f.at(f.shoff, f.shnum*size)
	if err != nil {
		return nil, err
	}
	where := func(i int) (off, n uint64) {
		h := headers[i*size:]
		if f.wide {
			return f.word(h[24:]), f.word(h[32:])
		}
		return f.word(h[16:]), f.word(h[20:])
	}
	names, _ := where(f.shstrndx)
	for i := range f.shnum {
		h := headers[i*size:]
		if binary.LittleEndian.Uint32(h[4:]) != wanted {
			continue
		}
		name, err := f.text(names + uint64(binary.LittleEndian.Uint32(h)))
		if err != nil || name != section {
			continue
		}
		off, n := where(i)
		if n > maxNote {
			return nil, errNotELF
		}
		data, err := f.at(off, int(n))
		if err != nil {
			return nil, err
		}
		align := h[32:]
		if f.wide {
			align = h[48:]
		}
		return description(data, owner, f.word(align)), nil
	}
	return nil, nil
}

// description takes the content out of a note of the given owner.
func description(data []byte, owner string, align uint64) []byte {
	if len(data) < 12 {
		return nil
	}
	if align != 8 {
		align = 4
	}
	nameLen, descLen := uint64(binary.LittleEndian.Uint32(data)), uint64(binary.LittleEndian.Uint32(data[4:]))
	data = data[12:]
	start := (nameLen + align - 1) &^ (align - 1)
	if nameLen == 0 || descLen == 0 || start > uint64(len(data)) || nameLen > uint64(len(data)) {
		return nil
	}
	if string(bytes.Trim(data[:nameLen], "\x00")) != owner {
		return nil
	}
	return bytes.Trim(data[start:min(uint64(len(data)), start+descLen)], "\x00")
}
