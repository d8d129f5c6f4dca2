package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/berth-project/berth"
)

// tarBlock is the size of an archive's blocks; an empty one ends it.
const tarBlock = 512

// stream is the archive within a layer's blob, as it arrives. Reading and hashing the blob, inflating it and
// hashing the archive are a goroutine each, so that what takes longest, the inflating, has a processor to
// itself; who reads the stream is the fourth stage. It must be finished.
type stream struct {
	*pipeReader
	blobHash, tarHash hash.Hash
	zeros             int        // with which the archive ends, up to a block
	fetched           chan error // from the first stage
	inflated          chan error // from the second
	hashed            chan struct{}
}

// startStream starts the stages. With whole the blob is read to its end even where its archive turns out to
// be bad: its digest then says whether it came as it was made.
func startStream(ctx context.Context, blob io.Reader, whole bool) *stream {
	raw, flat := newPipe(), newPipe()
	rawReader := raw.reader()
	s := &stream{
		blobHash: sha256.New(), tarHash: sha256.New(),
		fetched: make(chan error, 1), inflated: make(chan error, 1), hashed: make(chan struct{}),
	}
	s.pipeReader = flat.tap(s.tarHash, func() { close(s.hashed) }).reader()
	go func() { s.fetched <- raw.fill(source{blob}, s.blobHash) }()
	go func() { defer rawReader.close(); s.inflated <- inflate(ctx, rawReader, flat, whole) }()
	return s
}

// Read implements io.Reader, and counts the zero bytes with which the stream ends.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.pipeReader.Read(b)
	i := n
	for i > 0 && b[i-1] == 0 && n-i < tarBlock {
		i--
	}
	if i > 0 {
		s.zeros = 0
	}
	s.zeros = min(s.zeros+n-i, tarBlock)
	return n, err
}

// finish waits for the stages and verifies the digests. err is what unpacking came to; the answer is what
// caused it, where that is known better here.
func (s *stream) finish(want layerWant, err error) error {
	s.close()
	err = moreTelling(err, <-s.inflated)
	<-s.hashed
	ferr := <-s.fetched
	if got := digestSum(s.blobHash); ferr == nil && want.digest != "" && got != want.digest {
		// Whatever else went wrong comes from this.
		return fmt.Errorf("%w: layer digest mismatch: it should be %s and what came is %s", berth.ErrInvalid, want.digest, got)
	}
	if err = moreTelling(err, ferr); err != nil {
		return err
	}
	if want.diffID == "" && s.zeros < tarBlock {
		return badArchive(io.ErrUnexpectedEOF) // without a digest, only its end tells that an archive is whole
	}
	if got := digestSum(s.tarHash); want.diffID != "" && got != want.diffID {
		return fmt.Errorf("%w: layer digest mismatch: unpacked it should be %s and is %s", berth.ErrInvalid, want.diffID, got)
	}
	return nil
}

func digestSum(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// inflate is the stage between the blob and the archive.
func inflate(ctx context.Context, blob io.Reader, to *pipe, whole bool) error {
	r, err := decompress(ctx, blob)
	if err == nil {
		err = to.fill(inflated{r}, nil)
		r.Close()
	} else {
		err = badArchive(err)
		_ = to.fill(failing{err}, nil)
	}
	if whole || err == nil {
		_, derr := io.Copy(io.Discard, blob)
		err = moreTelling(err, derr)
	}
	return err
}

// source gives the errors of a blob's reader a kind, so that they are told from those of its content.
type source struct{ io.Reader }

func (s source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) && !hasKind(err) && !isContext(err) {
		err = fmt.Errorf("%w: %w", kindOf(err), err)
	}
	return n, err
}

// inflated gives the errors of a decompressor their kind.
type inflated struct{ io.Reader }

func (i inflated) Read(b []byte) (int, error) {
	n, err := i.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = badArchive(err)
	}
	return n, err
}

// failing is a reader that has only an error.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// moreTelling chooses between the errors of two stages: the cause over its consequences.
func moreTelling(a, b error) error {
	switch {
	case b == nil || errors.Is(b, errPipeClosed):
		return a
	case a == nil || errors.Is(a, errPipeClosed):
		return b
	case !hasKind(a) && hasKind(b) && !isContext(a):
		return b
	}
	return a
}
