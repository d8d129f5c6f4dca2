package nvidia

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
)

// library returns a shared library that holds nothing but its soname.
func library(t *testing.T, soname string) []byte {
	names := "\x00" + soname + "\x00"
	dynamic := []elf.Dyn64{{Tag: int64(elf.DT_SONAME), Val: 1}, {Tag: int64(elf.DT_NULL)}}
	sections := []elf.Section64{
		{},
		{Type: uint32(elf.SHT_STRTAB), Off: 64, Size: uint64(len(names))},
		{Type: uint32(elf.SHT_DYNAMIC), Off: 64 + uint64(len(names)), Size: 32, Link: 1, Entsize: 16},
	}
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: 64 + uint64(len(names)) + 32, Ehsize: 64, Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: 1,
	}
	var out bytes.Buffer
	for _, part := range []any{header, []byte(names), dynamic, sections} {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// Programs load libraries by their sonames, and compile against names without a version: the container gets
// those of these links that the host has.
func TestLinksOfSonames(t *testing.T) {
	const version = "550.54.15"
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, soname := range map[string]string{
		"libcuda":         "libcuda.so.1",
		"libnvidia-ml":    "libnvidia-ml.so.1",
		"libnvidia-tls":   "libnvidia-tls.so." + version,
		"libnvidia-alone": "libnvidia-alone.so.1",
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".so."+version), library(t, soname), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"libcuda.so.1": "libcuda.so." + version, "libnvidia-ml.so.1": "libnvidia-ml.so." + version, "libnvidia-ml.so": "libnvidia-ml.so.1",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	l, err := findLibraries(h, version, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"libcuda.so.1::/usr/lib64/libcuda.so",
		"libcuda.so.550.54.15::/usr/lib64/libcuda.so.1",
		"libnvidia-ml.so.550.54.15::/usr/lib64/libnvidia-ml.so.1",
		"libnvidia-ml.so.1::/usr/lib64/libnvidia-ml.so",
	}, l.links()); diff != "" {
		t.Error(diff)
	}
}

// A directory that only ld.so.conf names, reached by links.
func TestLibrariesByLDConf(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/ld.so.conf.d/gpu.conf": "# driver\n/opt/driver # here\nrelative\n", "opt/driver-1/libcuda.so.1.2.3": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/opt/driver-1", filepath.Join(root, "opt/driver")); err != nil {
		t.Fatal(err)
	}
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	l, err := findLibraries(h, "1.2.3", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/opt/driver-1/libcuda.so.1.2.3"}, l.files); diff != "" {
		t.Error(diff)
	}
}
