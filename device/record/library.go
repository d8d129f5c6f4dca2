package record

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"github.com/berth-project/berth/device"
)

// library is what is recorded of a library: an ELF file with nothing but the name that it has for the linker; nothing
// of any other file.
func library(h *device.Host, name string) []byte {
	f, err := h.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	lib, err := elf.NewFile(f)
	if err != nil {
		return nil
	}
	names, err := lib.DynString(elf.DT_SONAME)
	if err != nil || len(names) != 1 {
		return nil
	}
	return stub(names[0])
}

// stub is an ELF file of a header, a table of texts, a dynamic section, and the headers of these sections.
func stub(soname string) []byte {
	const headerSize, sectionSize = 64, 64
	texts := append([]byte("\x00"+soname+"\x00"), make([]byte, 8)...)
	texts = texts[:len(texts)/8*8]
	dynamic := []elf.Dyn64{{Tag: int64(elf.DT_SONAME), Val: 1}, {Tag: int64(elf.DT_NULL)}}
	size := uint64(binary.Size(dynamic))
	at := headerSize + uint64(len(texts))
	header := elf.Header64{
		Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Shoff: at + size,
		Ehsize: headerSize, Shentsize: sectionSize, Shnum: 3, Shstrndx: 1,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	sections := []elf.Section64{
		{},
		{Type: uint32(elf.SHT_STRTAB), Off: headerSize, Size: uint64(len(texts)), Addralign: 1},
		{Type: uint32(elf.SHT_DYNAMIC), Off: at, Size: size, Link: 1, Addralign: 8, Entsize: 16},
	}
	var b bytes.Buffer
	for _, part := range []any{header, texts, dynamic, sections} {
		_ = binary.Write(&b, binary.LittleEndian, part) // of fixed size, to memory
	}
	return b.Bytes()
}
