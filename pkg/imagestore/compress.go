package imagestore

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/inflate"
)

// maxWindow is zstd's window, which is memory; images are made with at most 8 MiB (level 19), --ultra goes to 128 MiB.
const maxWindow = 128 << 20

// decompress copies in to out, and reads in to its end. The first bytes say how it is compressed: gzip, zstd, or not.
func decompress(in *pieceReader, out *pipe) error {
	br := bufio.NewReaderSize(in, 16)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		err = inflate.Decode(br, (*inflated)(out))
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}): // skippable frame
		var z *zstd.Decoder
		z, err = zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err == nil {
			err = out.fill(z)
			z.Close()
		}
	default:
		err = out.fill(br)
	}
	if err != nil {
		return decodeError(err)
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// inflated is a pipe as the decoder's output.
type inflated pipe

// Buffer implements inflate.Output.
func (*inflated) Buffer() []byte { return newBuffer() }

// Emit implements inflate.Output.
func (p *inflated) Emit(buf []byte, from, to int) ([]byte, error) {
	if err := (*pipe)(p).send(piece{buf, from, to}); err != nil {
		return nil, err
	}
	return newBuffer(), nil
}

func decodeError(err error) error {
	for _, e := range []error{inflate.ErrCorrupt, zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return fmt.Errorf("decompress: %w: %w", err, errdefs.ErrDataLoss)
		}
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return fmt.Errorf("decompress: %w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// capable reports an effective capability of this process, capget(2).
func capable(c uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
