package unpack

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// A manifest tells what an unpacked layer holds, so that damage is found later: each record is
//
//	KIND MODE UID GID SIZE SUM PATH NUL
//
// in the order of the stream; of several with one PATH the last counts. KIND is f (file), d (directory), s (symbolic link),
// h (hard link), n (fifo or device) or x (PATH and all below it is gone). MODE is octal; UID and GID are -1 where owners
// are not kept and for directories that have no entry. SUM is the CRC-32C of the content or link target, in hexadecimal; that of h is of the path it links to.
// The checksum is to find what a disk or a power cut did; the layer's digest is what protects against intent.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifest writes records; nil writes none.
type manifest struct {
	w   *bufio.Writer
	buf []byte
}

func newManifest(w io.Writer) *manifest {
	if w == nil {
		return nil
	}
	return &manifest{w: bufio.NewWriterSize(w, 64<<10)}
}

func (m *manifest) add(kind byte, path string, mode uint32, uid, gid int, size int64, sum uint32) {
	if m == nil {
		return
	}
	b := append(m.buf[:0], kind, ' ')
	b = append(strconv.AppendUint(b, uint64(mode), 8), ' ')
	b = append(strconv.AppendInt(b, int64(uid), 10), ' ')
	b = append(strconv.AppendInt(b, int64(gid), 10), ' ')
	b = append(strconv.AppendInt(b, size, 10), ' ')
	b = append(strconv.AppendUint(b, uint64(sum), 16), ' ')
	b = append(append(b, path...), 0)
	m.buf = b
	_, _ = m.w.Write(b) // flush returns the error
}

func (m *manifest) flush() error {
	if m == nil {
		return nil
	}
	return m.w.Flush()
}

// note records an entry that was made.
func (a *applier) note(kind byte, path string, hdr *tar.Header, size int64, sum uint32) {
	uid, gid := hdr.Uid, hdr.Gid
	if a.opt.SkipOwner {
		uid, gid = -1, -1
	}
	a.manifest.add(kind, path, uint32(hdr.Mode&0o7777), uid, gid, size, sum)
}

func sumOf(s string) uint32 { return crc32.Checksum([]byte(s), castagnoli) }

// record is one entry of a manifest that was read.
type record struct {
	kind     byte
	mode     uint32
	uid, gid int
	size     int64
	sum      uint32
}

// maxRecord bounds one record: a path and its numbers.
const maxRecord = 8 << 10

// readManifest returns the records that count, by path.
func readManifest(r io.Reader) (map[string]record, error) {
	br := bufio.NewReaderSize(r, maxRecord)
	out := map[string]record{}
	var gone []string
	for {
		line, err := br.ReadSlice(0)
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("manifest of a layer: %w: %w", err, errdefs.ErrDataLoss)
		}
		path, rec, err := parseRecord(string(line[:len(line)-1]))
		if err != nil {
			return nil, fmt.Errorf("manifest of a layer: %w: %w", err, errdefs.ErrDataLoss)
		}
		if rec.kind != 'x' {
			out[path] = rec
			continue
		}
		if old := out[path]; old.kind == 'd' {
			gone = gone[:0]
			for p := range out {
				if strings.HasPrefix(p, path+"/") {
					gone = append(gone, p)
				}
			}
			for _, p := range gone {
				delete(out, p)
			}
		}
		delete(out, path)
	}
}

func parseRecord(line string) (string, record, error) {
	f := strings.SplitN(line, " ", 7)
	if len(f) != 7 || len(f[0]) != 1 || f[6] == "" {
		return "", record{}, errors.New("not a record")
	}
	var errs [5]error
	mode, err := strconv.ParseUint(f[1], 8, 32)
	errs[0] = err
	uid, err := strconv.Atoi(f[2])
	errs[1] = err
	gid, err := strconv.Atoi(f[3])
	errs[2] = err
	size, err := strconv.ParseInt(f[4], 10, 64)
	errs[3] = err
	sum, err := strconv.ParseUint(f[5], 16, 32)
	errs[4] = err
	return f[6], record{f[0][0], uint32(mode), uid, gid, size, uint32(sum)}, errors.Join(errs[:]...)
}
