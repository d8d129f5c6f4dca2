package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/berth-project/berth"
)

// zstdWindow bounds the memory of one decoder. 128 MiB is what zstd --long makes; images have 8 MiB.
const zstdWindow = 128 << 20

// xzMemory bounds the memory of xz. xz -9 needs 65 MiB; a header may ask for 4 GiB.
const xzMemory = "256MiB"

// Decompress reads r as whatever its first bytes say it is: gzip, zstd, bzip2, xz or not compressed. xz is a program,
// which ends with ctx.
func Decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) { return decompress(ctx, r) }

// decompress reads r as whatever its first bytes say it is: gzip, zstd, bzip2, xz or not compressed.
// The media type is not asked: registries hold layers with wrong ones.
func decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch compression(head) {
	case "gzip":
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, badArchive(err)
		}
		return zr, nil
	case "zstd":
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, badArchive(err)
		}
		return zr.IOReadCloser(), nil
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(br)), nil
	case "xz":
		return newXZ(ctx, br)
	}
	return io.NopCloser(br), nil
}

// xzReader is the output of the program xz.
type xzReader struct {
	io.Reader
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

func newXZ(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	path, err := exec.LookPath("xz")
	if err != nil {
		return nil, fmt.Errorf("%w: it is compressed with xz, and the program xz is not installed; install xz-utils", berth.ErrUnsupported)
	}
	x := &xzReader{cmd: exec.CommandContext(ctx, path, "--decompress", "--stdout", "--memlimit-decompress="+xzMemory)}
	x.cmd.Stdin, x.cmd.Stderr = r, &x.stderr
	if x.Reader, err = x.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return x, x.cmd.Start()
}

func (x *xzReader) Read(b []byte) (int, error) {
	n, err := x.Reader.Read(b)
	if errors.Is(err, io.EOF) {
		if werr := x.cmd.Wait(); werr != nil {
			return n, fmt.Errorf("%w: corrupt archive: %s", berth.ErrInvalid, bytes.TrimSpace(x.stderr.Bytes()))
		}
	}
	return n, err
}

func (x *xzReader) Close() error {
	if x.cmd.ProcessState == nil {
		_ = x.cmd.Process.Kill()
		_ = x.cmd.Wait()
	}
	return nil
}

// compression names what the first bytes of a file say it is compressed with; "" if it is not.
func compression(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	case len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return "zstd" // a skippable frame
	case bytes.HasPrefix(head, []byte("BZh")):
		return "bzip2"
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "xz"
	}
	return ""
}
