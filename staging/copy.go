package staging

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	copyChunk  = 64 << 20 // bytes that the kernel copies at a time; between them a context may end the copy
	copyBuffer = 1 << 20  // bytes
)

// copyFile makes dst, which is empty, what src is now: by sharing its blocks where the file system can, else
// in the kernel, else by reading and writing. Holes stay holes. It returns the size of what was written,
// which is less than src's where that was cut meanwhile.
func copyFile(ctx context.Context, dst, src *os.File) (int64, error) {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return sizeOf(dst)
	}
	// A file that grows meanwhile is copied as far as it reached.
	size, err := sizeOf(src)
	if err != nil {
		return 0, err
	}
	for at := int64(0); at < size; {
		from, to := nextData(src, at, size)
		if from >= size {
			break
		}
		n, err := copyRange(ctx, dst, src, from, to)
		if err != nil {
			return 0, err
		}
		if n < to-from {
			size = from + n
		}
		at = to
	}
	return size, dst.Truncate(size)
}

func sizeOf(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// nextData is the next range that is no hole, at or after at. A file system that knows no holes has none.
func nextData(f *os.File, at, size int64) (from, to int64) {
	from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size
	}
	if err != nil {
		return at, size
	}
	if to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil || to <= from || to > size {
		to = size
	}
	return from, to
}

// copyRange copies a range to the same place and says how much of it there was.
func copyRange(ctx context.Context, dst, src *os.File, from, to int64) (int64, error) {
	at := from
	for at < to {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		in, out := at, at
		n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(to-at, copyChunk)), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			// Not between these file systems, or not of such a file: or there is really no more.
			n, err := copyByHand(ctx, dst, src, at, to)
			return at + n - from, err
		}
		at += int64(n)
	}
	return to - from, nil
}

func copyByHand(ctx context.Context, dst, src *os.File, from, to int64) (int64, error) {
	buf := make([]byte, min(to-from, copyBuffer))
	for at := from; at < to; {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		n, err := src.ReadAt(buf[:min(to-at, int64(len(buf)))], at)
		if n > 0 {
			if _, err := dst.WriteAt(buf[:n], at); err != nil {
				return 0, err
			}
			at += int64(n)
		}
		if errors.Is(err, io.EOF) && at < to {
			return at - from, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
	}
	return to - from, nil
}
