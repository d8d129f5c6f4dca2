package program

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func code(ins ...[5]int64) (b []byte) {
	for _, in := range ins {
		b = append(b, byte(in[0]), byte(in[1]|in[2]<<4))
		b = binary.NativeEndian.AppendUint16(b, uint16(in[3]))
		b = binary.NativeEndian.AppendUint32(b, uint32(in[4]))
	}
	return b
}

const (
	ldxw = unix.BPF_LDX | unix.BPF_W | unix.BPF_MEM
	ldxh = unix.BPF_LDX | unix.BPF_H | unix.BPF_MEM
	mov  = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	movx = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	mov3 = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_K
	and3 = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	rsh3 = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	jne  = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	jnex = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_X
	ja   = unix.BPF_JMP | unix.BPF_JA
	end  = unix.BPF_JMP | unix.BPF_EXIT
)

// TestAllows: programs as runc, crun and systemd make them.
func TestAllows(t *testing.T) {
	runc := code( // c 10:229 rw, as of runc 1.1
		[5]int64{ldxw, 2, 1, 0, 0}, [5]int64{and3, 2, 0, 0, 0xffff},
		[5]int64{ldxw, 3, 1, 0, 0}, [5]int64{rsh3, 3, 0, 0, 16},
		[5]int64{ldxw, 4, 1, 4, 0}, [5]int64{ldxw, 5, 1, 8, 0},
		[5]int64{jne, 2, 0, 7, 2}, [5]int64{unix.BPF_ALU | unix.BPF_MOV | unix.BPF_X, 1, 3, 0, 0}, [5]int64{and3, 1, 0, 0, 6},
		[5]int64{jnex, 1, 3, 4, 0}, [5]int64{jne, 4, 0, 3, 10}, [5]int64{jne, 5, 0, 2, 229},
		[5]int64{mov3, 0, 0, 0, 1}, [5]int64{end, 0, 0, 0, 0},
		[5]int64{mov3, 0, 0, 0, 0}, [5]int64{end, 0, 0, 0, 0},
	)
	half := code( // all of 195, by halves of words, a jump, a number in two instructions and a barrier
		[5]int64{ldxh, 2, 1, 4, 0}, [5]int64{noSpec, 0, 0, 0, 0}, [5]int64{loadImm64, 3, 0, 0, 195}, [5]int64{0, 0, 0, 0, 0},
		[5]int64{jnex, 2, 3, 2, 0}, [5]int64{mov, 0, 0, 0, 1}, [5]int64{ja, 0, 0, 1, 0}, [5]int64{mov, 0, 0, 0, 0}, [5]int64{end, 0, 0, 0, 0},
	)
	const r, w, m = unix.BPF_DEVCG_ACC_READ, unix.BPF_DEVCG_ACC_WRITE, unix.BPF_DEVCG_ACC_MKNOD
	for name, c := range map[string]struct {
		code []byte
		use  Use
		want bool
	}{
		"allowed":           {runc, Use{unix.BPF_DEVCG_DEV_CHAR, r, 10, 229}, true},
		"both":              {runc, Use{unix.BPF_DEVCG_DEV_CHAR, r | w, 10, 229}, true},
		"one more":          {runc, Use{unix.BPF_DEVCG_DEV_CHAR, r | m, 10, 229}, false},
		"another minor":     {runc, Use{unix.BPF_DEVCG_DEV_CHAR, r, 10, 237}, false},
		"another major":     {runc, Use{unix.BPF_DEVCG_DEV_CHAR, r, 11, 229}, false},
		"a block device":    {runc, Use{unix.BPF_DEVCG_DEV_BLOCK, r, 10, 229}, false},
		"all of a major":    {half, Use{unix.BPF_DEVCG_DEV_CHAR, r, 195, 1 << 19}, true},
		"of no other major": {half, Use{unix.BPF_DEVCG_DEV_CHAR, r, 226, 0}, false},
	} {
		p, err := Parse(c.code)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.Allows(c.use); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for name, bad := range map[string][]byte{
		"nothing":        nil,
		"no end":         code([5]int64{mov, 0, 0, 0, 1}),
		"for ever":       code([5]int64{ja, 0, 0, -1, 0}),
		"a jump out":     code([5]int64{ja, 0, 0, 9, 0}, [5]int64{end, 0, 0, 0, 0}),
		"a call":         code([5]int64{unix.BPF_JMP | unix.BPF_CALL, 0, 0, 0, 1}, [5]int64{end, 0, 0, 0, 0}),
		"beyond":         code([5]int64{ldxw, 0, 1, 12, 0}, [5]int64{end, 0, 0, 0, 0}),
		"before":         code([5]int64{ldxw, 0, 1, -4, 0}, [5]int64{end, 0, 0, 0, 0}),
		"no pointer":     code([5]int64{ldxw, 0, 2, 0, 0}, [5]int64{end, 0, 0, 0, 0}),
		"a map":          code([5]int64{loadImm64, 0, 1, 0, 7}, [5]int64{0, 0, 0, 0, 0}, [5]int64{end, 0, 0, 0, 0}),
		"half a number":  code([5]int64{loadImm64, 0, 0, 0, 7}),
		"with sign":      code([5]int64{movx, 0, 1, 8, 0}, [5]int64{end, 0, 0, 0, 0}),
		"to be compared": code([5]int64{unix.BPF_JMP32 | unix.BPF_JSGT, 0, 0, 1, 0}, [5]int64{end, 0, 0, 0, 0}),
	} {
		p, err := Parse(bad)
		if err == nil {
			_, err = p.Allows(Use{Type: unix.BPF_DEVCG_DEV_CHAR, Access: r, Major: 1, Minor: 3})
		}
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(code([5]int64{mov, 11, 0, 0, 0})); !errors.Is(err, ErrUnknown) {
		t.Errorf("no register: %v", err)
	}
}

// FuzzAllows: no program stops this one.
func FuzzAllows(f *testing.F) {
	f.Add(code([5]int64{mov, 0, 0, 0, 1}, [5]int64{end, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if p, err := Parse(raw); err == nil {
			_, _ = p.Allows(Use{Type: unix.BPF_DEVCG_DEV_CHAR, Access: unix.BPF_DEVCG_ACC_READ, Major: 195})
		}
	})
}
