package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// sparseArchive writes by hand what archive/tar reads but does not write: an archive of one file in GNU's old
// sparse format, with 512 bytes of data at the end of a hole.
func sparseArchive(name string, size int64, data []byte) []byte {
	var hdr [512]byte
	copy(hdr[0:], name)
	copy(hdr[100:], "0000644\x00")
	copy(hdr[108:], "0000000\x00")
	copy(hdr[116:], "0000000\x00")
	copy(hdr[124:], "00000001000\x00") // 512 bytes follow
	copy(hdr[136:], "00000000000\x00")
	hdr[156] = tar.TypeGNUSparse
	copy(hdr[257:], "ustar  \x00")
	copy(hdr[386:], tarNumber(size-512))
	copy(hdr[398:], tarNumber(512))
	copy(hdr[483:], tarNumber(size))
	copy(hdr[148:], "        ")
	sum := 0
	for _, c := range hdr {
		sum += int(c)
	}
	copy(hdr[148:], fmt.Sprintf("%06o\x00 ", sum))
	return bytes.Join([][]byte{hdr[:], data, make([]byte, 1024)}, nil)
}

// tarNumber is a number of 12 bytes in GNU's binary form, which takes any size.
func tarNumber(n int64) []byte {
	return append([]byte{0x80, 0, 0, 0}, binary.BigEndian.AppendUint64(nil, uint64(n))...)
}

// TestUntarSparseTooLarge refuses, before it reads, sizes that take minutes to read: of one file, and of all in
// a layer.
func TestUntarSparseTooLarge(t *testing.T) {
	_, _, err := unpackInto(t, t.TempDir(), sparseArchive("huge.img", 15<<40, make([]byte, 512)))
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), `"huge.img"`) || !strings.Contains(err.Error(), "15 TiB") || !strings.Contains(err.Error(), "256 GiB") {
		t.Error(err)
	}
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u := newUnpacker(root, false)
	defer u.tree.close()
	u.sparse = sparseMax - 1000 // as if there had been others
	for i, want := range []error{nil, berth.ErrInvalid} {
		r := tar.NewReader(bytes.NewReader(sparseArchive(fmt.Sprint(i), 600, make([]byte, 512))))
		hdr, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := u.entry(t.Context(), hdr, r); !errors.Is(err, want) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestUntarSparseCanceled ends the reading of a hole, which no read of the archive ends.
func TestUntarSparseCanceled(t *testing.T) {
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, berth.ErrCanceled)
	defer cancel()
	r := bytes.NewReader(sparseArchive("hole", sparseMax, make([]byte, 512)))
	if _, err := untar(ctx, r, root, false); !errors.Is(err, berth.ErrCanceled) {
		t.Error(err)
	}
}

// updown is what a symbolic link says that leads deep down and up to the root again.
func updown(depth int) string { return strings.Repeat("d/", depth) + strings.Repeat("../", depth) }

// TestUntarLinksUpAndDown has paths whose links lead through hundreds of thousands of directories each: some
// are taken, many are not.
func TestUntarLinksUpAndDown(t *testing.T) {
	entries := []entry{dir(strings.Repeat("d/", 800)), symlink("l", updown(800))}
	for i := range 20 {
		entries = append(entries, file(strings.Repeat("l/", 20-i%2)+fmt.Sprint(i), ""))
	}
	root, _, err := unpackInto(t, t.TempDir(), archive(t, entries...))
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "too many directories") {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(root, "0")); err != nil {
		t.Error(err)
	}
}

// TestTreeCanceled ends the way to one directory.
func TestTreeCanceled(t *testing.T) {
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.Mkdir(filepath.Join(root.Name(), "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	tr := newTree(root)
	defer tr.close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(berth.ErrCanceled)
	if _, err := tr.open(ctx, "d", nil); !errors.Is(err, berth.ErrCanceled) {
		t.Error(err)
	}
}

// TestTreeAliases bounds what is remembered of ways through links.
func TestTreeAliases(t *testing.T) {
	root, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	tr := newTree(root)
	defer tr.close()
	for i := range 2 * aliasMost {
		name := fmt.Sprint("l", i)
		if err := unix.Symlinkat(".", int(root.Fd()), name); err != nil {
			t.Fatal(err)
		}
		if _, err := tr.open(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(tr.aliases) > aliasMost {
		t.Error(len(tr.aliases))
	}
}

// TestFindSteps looks a file up over links that lead up and down: some are followed, many are not.
func TestFindSteps(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, strings.Repeat("d/", 500)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(updown(500), filepath.Join(root, "l")); err != nil {
		t.Fatal(err)
	}
	v := view{roots: []string{root}}
	for links, want := range map[int]error{5: nil, 10: unix.ELOOP} {
		if _, err := v.find(strings.Repeat("l/", links)+"d", true); !errors.Is(err, want) {
			t.Errorf("%d links: %v", links, err)
		}
	}
}
