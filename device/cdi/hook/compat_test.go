package hook

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// compatELF is a shared library with nothing but a note on compatibility.
func compatELF(text string) []byte {
	le := binary.LittleEndian
	const owner = "NVIDIA Corporation\x00\x00" // padded to 4
	names := "\x00.note.cuda.fwd_compatibility\x00.shstrtab\x00"
	var noteData []byte
	noteData = le.AppendUint32(noteData, 19)
	noteData = le.AppendUint32(noteData, uint32(len(text)))
	noteData = le.AppendUint32(noteData, 1)
	noteData = append(append(noteData, owner...), text...)

	out := make([]byte, 64)
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], 3)
	le.PutUint16(out[18:], 62)
	noteAt := uint64(len(out))
	out = append(out, noteData...)
	namesAt := uint64(len(out))
	out = append(out, names...)
	le.PutUint64(out[40:], uint64(len(out)))
	le.PutUint16(out[58:], 64)
	le.PutUint16(out[60:], 3)
	le.PutUint16(out[62:], 2)
	section := func(name, kind uint32, off, size uint64) {
		h := make([]byte, 64)
		le.PutUint32(h, name)
		le.PutUint32(h[4:], kind)
		le.PutUint64(h[24:], off)
		le.PutUint64(h[32:], size)
		le.PutUint64(h[48:], 4)
		out = append(out, h...)
	}
	section(0, 0, 0, 0)
	section(1, 7, noteAt, uint64(len(noteData)))
	section(30, 3, namesAt, uint64(len(names)))
	return out
}

func TestCompatNote(t *testing.T) {
	const text = `{"Format":1,"CUDA Version":"12.9","Driver":[535,550,575],"Device":[1]}`
	n, err := readCompatNote(bytes.NewReader(compatELF(text)))
	if err != nil || n == nil || n.CUDA != "12.9" || len(n.Branches) != 3 {
		t.Fatal(n, err)
	}
	if n, err := readCompatNote(bytes.NewReader(compatELF("{nonsense"))); n != nil || err == nil {
		t.Errorf("a note that is no JSON: %v, %v", n, err)
	}
	if n, err := readCompatNote(bytes.NewReader([]byte("text"))); n != nil || err != nil {
		t.Errorf("no ELF file: %v, %v", n, err)
	}

	for _, c := range []struct {
		name         string
		driver, cuda string
		lib          string
		want         string
	}{
		{"newer, and the branch is known", "550.1.1", "", text, "/compat"},
		{"the branch is not known", "560.1.1", "", text, ""},
		{"the note is broken: the branch decides", "550.1.1", "", "{nonsense", "/compat"},
		{"the note is broken, and CUDA asked", "550.1.1", "12.8", "{nonsense", ""},
		{"by CUDA alone", "", "12.8", text, "/compat"},
		{"by CUDA alone, older", "", "13.0", text, ""},
		{"nothing known", "", "", text, ""},
		{"versions that are none", "abc", "x.y", text, ""},
	} {
		root := newContainer(t, map[string]string{"compat/libcuda.so.575.57.08": string(compatELF(c.lib)), "compat/libcuda.so.1": "-> libcuda.so.575.57.08"}).job().root
		got, _, err := Compat{Dir: "/compat", HostDriver: c.driver, HostCUDA: c.cuda}.Find(root)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	root := newContainer(t, map[string]string{"compat/libcuda.so.575.1": "", "compat/libcuda.so.580.1": ""}).job().root
	if got, why, err := (Compat{Dir: "/compat", HostDriver: "550.1"}).Find(root); got != "" || why == "" || err != nil {
		t.Errorf("two of them: %q, %q, %v", got, why, err)
	}
}
