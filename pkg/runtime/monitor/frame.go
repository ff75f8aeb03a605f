package monitor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The limits of one frame.
const (
	maxBody  = 16 << 20
	maxFiles = 8
)

// headerSize is the size of a frame's header:
//
//	0  magic "CM"
//	2  kind, uint16
//	4  length of the body, uint32
//	8  request id, uint64; the top byte is the number of fds
//
// All in little-endian order. The fds ride on the first byte of the header.
const headerSize = 16

// frameTime is how long the rest of a frame may take once its first byte is there, and how long a write may take.
const frameTime = 20 * time.Second

// kind says what a frame is.
type kind uint16

// Requests. The numbers are the protocol: they are never reused.
const (
	kindHello kind = iota + 1
	kindVersion
	kindCreate
	kindStart
	kindSignal
	kindKill
	kindWait
	kindDelete
	kindState
	kindList
	kindReopenLog
	kindResize
	kindExec
	kindAttach
	kindEvents
	kindShutdown
	kindExecKill    // on an exec's connection
	kindKillSession // an exec session, whether its process runs or has ended
	kindKeep        // gives what a next cri-monitor needs, on a connection of its own
	kindRestore     // takes it back
	kindUpgrade     // goes on in another program; the program's file rides on it
	kindRelease     // on an exec's connection: what the program left behind may stay
	kindCreateInto  // as kindCreate, into a cgroup that is being made; a pipe rides on it, see cgroupPipe
	kindExecOwn     // as kindExec, without what the container has itself, see own
)

// Answers.
const (
	kindOK       kind = 0x111 + iota // the result
	kindError                        // wireError
	kindStarted                      // an exec runs
	kindExited                       // an exec has ended
	kindEvent                        // one Event
	kindSnapshot                     // how many events follow that tell of what there is
	kindKept                         // one kept
)

// frame is one message. Whoever receives it owns files.
type frame struct {
	kind  kind
	id    uint64 // 56 bits
	body  []byte
	files []*os.File
	fds   []int // instead of files, as readFDs has them
}

func (f *frame) closeFiles() {
	for _, file := range f.files {
		file.Close()
	}
	closeFDs(f.fds)
	f.files, f.fds = nil, nil
}

// own makes files of the descriptors.
func (f *frame) own() {
	for _, fd := range f.fds {
		f.files = append(f.files, os.NewFile(uintptr(fd), "passed"))
	}
	f.fds = nil
}

// decode parses the body into v.
func (f *frame) decode(v any) error {
	if err := unmarshal(f.body, v); err != nil {
		return fmt.Errorf("message of kind %d: %w: %w", f.kind, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// result parses the body of a unary answer into v, if there is any.
func (f *frame) result(v any) error {
	f.closeFiles()
	if v == nil || len(f.body) == 0 {
		return nil
	}
	return f.decode(v)
}

// marshal is json.Marshal, appended to b, where v can't do that by itself.
func marshal(b []byte, v any) ([]byte, error) {
	if q, ok := v.(appender); ok {
		return q.appendJSON(b)
	}
	body, err := marshalValue(v)
	return append(b, body...), err
}

// marshalValue is json.Marshal, which goes once more over all that a Marshaler has made, and messages are long.
func marshalValue(v any) ([]byte, error) {
	if m, ok := v.(json.Marshaler); ok {
		return m.MarshalJSON()
	}
	return json.Marshal(v)
}

// unmarshal is json.Unmarshal, which goes twice over all that an Unmarshaler is given.
func unmarshal(b []byte, v any) error {
	if q, ok := v.(quickReader); ok && q.quickRead(b) {
		return nil
	}
	if u, ok := v.(json.Unmarshaler); ok {
		return u.UnmarshalJSON(b)
	}
	return json.Unmarshal(b, v)
}

// header is a decoded frame header.
type header struct {
	kind  kind
	size  uint32
	id    uint64
	files int
}

func (h header) encode() [headerSize]byte {
	var b [headerSize]byte
	b[0], b[1] = 'C', 'M'
	binary.LittleEndian.PutUint16(b[2:], uint16(h.kind))
	binary.LittleEndian.PutUint32(b[4:], h.size)
	binary.LittleEndian.PutUint64(b[8:], h.id&(1<<56-1)|uint64(h.files)<<56)
	return b
}

// decodeHeader refuses what can't be the beginning of a frame.
func decodeHeader(b []byte) (header, error) {
	if len(b) != headerSize || b[0] != 'C' || b[1] != 'M' {
		return header{}, fmt.Errorf("no frame of this protocol: %w", errdefs.ErrInvalidArgument)
	}
	id := binary.LittleEndian.Uint64(b[8:])
	h := header{
		kind:  kind(binary.LittleEndian.Uint16(b[2:])),
		size:  binary.LittleEndian.Uint32(b[4:]),
		id:    id & (1<<56 - 1),
		files: int(id >> 56),
	}
	if h.size > maxBody {
		return header{}, fmt.Errorf("frame of %d bytes, the limit is %d: %w", h.size, maxBody, errdefs.ErrInvalidArgument)
	}
	if h.files > maxFiles {
		return header{}, fmt.Errorf("frame with %d files, the limit is %d: %w", h.files, maxFiles, errdefs.ErrInvalidArgument)
	}
	return h, nil
}

// writeFrame sends a frame whose body is v as JSON (nil: empty). The caller keeps files.
func writeFrame(c *net.UnixConn, k kind, id uint64, v any, files ...*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		// SyscallConn, since Fd would make the file blocking for all who share it.
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	err := sendFrame(c, k, id, v, frameTime, fds)
	runtime.KeepAlive(files)
	return err
}

// frames are buffers for what is sent, of at most maxPooled bytes. It has most requests for containers, the longest messages.
var frames = sync.Pool{New: func() any { return new([]byte) }}

const maxPooled = 16 << 10

// sendFrame is writeFrame for raw descriptors, with a time limit.
func sendFrame(c *net.UnixConn, k kind, id uint64, v any, limit time.Duration, fds []int) error {
	buffer := frames.Get().(*[]byte)
	defer frames.Put(buffer)
	b := append(*buffer, make([]byte, headerSize)...) // in one piece: the other side shall not wake for half of it
	if v != nil {
		var err error
		if b, err = marshal(b, v); err != nil {
			return fmt.Errorf("message of kind %d: %w", k, err)
		}
	}
	if cap(b) <= maxPooled {
		*buffer = b[:0]
	}
	size := len(b) - headerSize
	if size > maxBody {
		return fmt.Errorf("message of %d bytes, the limit is %d: %w", size, maxBody, errdefs.ErrInvalidArgument)
	}
	h := header{kind: k, size: uint32(size), id: id, files: len(fds)}.encode()
	copy(b, h[:])
	if err := c.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if len(fds) > 0 {
		n, _, err := c.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	if len(b) == 0 {
		return nil
	}
	_, err := c.Write(b)
	return err
}

// readFrame waits for the next frame without a limit, and for its rest for frameTime. io.EOF: the other side has closed
// between two frames.
// With a gate the wait can be stopped: errFrozen.
func readFrame(c *net.UnixConn, gate *readGate) (*frame, error) {
	f, err := readFDs(c, gate)
	if err == nil {
		f.own()
	}
	return f, err
}

// readFDs is readFrame for who wants descriptors that Go's poller knows nothing of.
func readFDs(c *net.UnixConn, gate *readGate) (*frame, error) {
	var b [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	if err := gate.wait(c); err != nil {
		return nil, err
	}
	n, oobn, flags, _, err := c.ReadMsgUnix(b[:], oob)
	if errors.Is(err, os.ErrDeadlineExceeded) && gate.stopped() {
		return nil, errFrozen
	}
	f := &frame{fds: takeFDs(oob[:oobn])}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil {
		err = gate.ready(c)
	}
	if err == nil {
		err = f.readRest(c, b[:], n, flags)
	}
	if err != nil {
		f.closeFiles()
		return nil, err
	}
	return f, nil
}

func (f *frame) readRest(c *net.UnixConn, b []byte, n, flags int) error {
	if flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("frame with too many files: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := io.ReadFull(c, b[n:]); err != nil {
		return fmt.Errorf("frame cut short: %w", err)
	}
	h, err := decodeHeader(b)
	if err != nil {
		return err
	}
	if h.files != len(f.fds) {
		return fmt.Errorf("frame with %d of its %d files: %w", len(f.fds), h.files, errdefs.ErrInvalidArgument)
	}
	f.kind, f.id = h.kind, h.id
	if f.body, err = readBody(c, int(h.size)); err != nil {
		return fmt.Errorf("frame cut short: %w", err)
	}
	return nil
}

// readBody allocates as the bytes come, so that a header alone can't claim 16 MiB.
func readBody(r io.Reader, size int) ([]byte, error) {
	const step = 256 << 10
	b := make([]byte, 0, min(size, step))
	for len(b) < size {
		if len(b) == cap(b) {
			grown := make([]byte, len(b), min(size, 4*cap(b)))
			copy(grown, b)
			b = grown
		}
		n, err := io.ReadFull(r, b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

// takeFDs returns every descriptor in the control message. The kernel has made them close-on-exec.
func takeFDs(oob []byte) (all []int) {
	if len(oob) == 0 {
		return nil
	}
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err == nil {
			all = append(all, fds...)
		}
	}
	return all
}
