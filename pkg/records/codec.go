package records

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"

	"github.com/containerd/errdefs"
)

// envelope is the first line of a record.
type envelope struct {
	Version int             `json:"version"`
	ID      string          `json:"id"`
	BootID  string          `json:"boot_id"`
	Data    json.RawMessage `json:"data,omitempty"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encode(id string, version int, boot string, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	head, err := json.Marshal(envelope{Version: version, ID: id, BootID: boot})
	if err != nil {
		return nil, err
	}
	// Put in by hand: encoding/json would go over data, which it has just made, once more.
	b := make([]byte, 0, len(head)+len(data)+len(`,"data":`)+len("}\ncrc32c:00000000\n"))
	b = append(b, head[:len(head)-1]...)
	b = append(b, `,"data":`...)
	b = append(b, data...)
	b = append(b, "}\n"...)
	return append(b, sumLine(b)...), nil
}

// decode reads a file's content. With an error it returns whatever it could make out.
func decode[T any](b []byte, id string, version int) (v T, boot string, err error) {
	b, err = last(b)
	if err == nil {
		err = verify(b)
	}
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	var e envelope
	if jerr := json.Unmarshal(line, &e); jerr != nil {
		if err == nil {
			err = damaged(jerr.Error())
		}
		return v, "", err
	}
	derr := json.Unmarshal(e.Data, &v)
	switch {
	case err != nil && e.Version > version:
		// Perhaps a newer server ends its records otherwise.
		err = fmt.Errorf("has version %d, this server reads up to %d: a newer cri-server wrote it, unless it is damaged (%w): %w",
			e.Version, version, err, errdefs.ErrFailedPrecondition)
	case err != nil:
	case e.ID != id:
		// A file renamed by hand would make one object appear as another.
		err = damaged(fmt.Sprintf("holds the record of %.130q", e.ID))
	case e.Version > version:
		err = fmt.Errorf("has version %d, this server reads up to %d: a newer cri-server wrote it: %w",
			e.Version, version, errdefs.ErrFailedPrecondition)
	case e.Version < 1:
		err = damaged(fmt.Sprintf("has version %d", e.Version))
	case len(e.Data) == 0:
		err = damaged("has no data")
	case derr != nil:
		err = damaged(derr.Error())
	}
	return v, e.BootID, err
}

// sumSize is the length of the second line.
const sumSize = len("crc32c:00000000\n")

// page is where a write(2) may end that SIGKILL cuts short: the smallest size of a page, of which the larger ones are multiples.
const page = 4096

// last returns the last whole record of a file. What is behind it may be the beginning of another whose writer was killed:
// nobody was told that it was written. That can only end with a page; else the file was cut off, and the last whole record is
// not the last one that there was: an object must not be taken for half made because of that. With an error it returns what
// there may be to show.
func last(b []byte) ([]byte, error) {
	var found []byte
	for rest := b; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if i >= 0 && len(rest) >= i+1+sumSize {
			if !isSum(rest[i : i+1+sumSize]) {
				return rest, damaged("a line that should be a checksum is none")
			}
			found, rest = rest[:i+1+sumSize], rest[i+1+sumSize:]
			continue
		}
		switch {
		case found == nil:
			return b, nil // verify says what is wrong with it
		case i > 0 && rest[i-1] != '}':
			return rest, damaged("lines run into each other")
		case len(b)%page != 0:
			return found, damaged(fmt.Sprintf("cut short after %d bytes", len(b)))
		}
		return found, nil
	}
	return found, nil
}

// isSum tells whether b, from a line's break on, has the form of a checksum.
func isSum(b []byte) bool {
	return len(b) == 1+sumSize && b[0] == '\n' && bytes.HasPrefix(b[1:], []byte("crc32c:")) && b[sumSize] == '\n'
}

// verify checks the second line against the first.
func verify(b []byte) error {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return damaged(fmt.Sprintf("cut short after %d bytes", len(b)))
	}
	line, rest := b[:i+1], b[i+1:]
	// Compared as text: a flipped bit in the sum itself (0a, 0A) must not pass either.
	if want := sumLine(line); string(rest) != want {
		return damaged(fmt.Sprintf("checksum line is %.32q, not %q", rest, want))
	}
	return nil
}

func sumLine(line []byte) string {
	const digits = "0123456789abcdef"
	sum := crc32.Checksum(line, castagnoli)
	b := []byte("crc32c:00000000\n")
	for i := range 8 {
		b[7+i] = digits[sum>>(28-4*i)&15]
	}
	return string(b)
}

func damaged(why string) error {
	return fmt.Errorf("damaged: %s: %w", why, errdefs.ErrDataLoss)
}
