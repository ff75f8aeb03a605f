package logs

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
)

// State is what a File holds beside what is in its file: with it another process goes on where this one stopped.
type State struct {
	Dir  string `json:"dir"`
	Path string `json:"path"`
	// Last is the time of the newest record in ns since 1970.
	Last int64 `json:"last,omitempty"`
	// Part holds, for each stream, the line whose newline has not come yet.
	Part [2][]byte `json:"part,omitempty"`
	// Held are records that wait for the file system; the first Wrote bytes are in the file.
	Held  []byte `json:"held,omitempty"`
	Wrote int    `json:"wrote,omitempty"`
}

// AppendJSON appends what json.Marshal makes of it.
func (s *State) AppendJSON(b []byte) []byte {
	b = quickjson.String(quickjson.Key(append(b, '{'), "dir"), s.Dir)
	b = quickjson.String(quickjson.Key(b, "path"), s.Path)
	if s.Last != 0 {
		b = quickjson.Int(quickjson.Key(b, "last"), s.Last)
	}
	b = append(quickjson.Key(b, "part"), '[')
	b = append(quickjson.Bytes(b, s.Part[0]), ',')
	b = append(quickjson.Bytes(b, s.Part[1]), ']')
	if len(s.Held) > 0 {
		b = quickjson.Bytes(quickjson.Key(b, "held"), s.Held)
	}
	if s.Wrote != 0 {
		b = quickjson.Int(quickjson.Key(b, "wrote"), s.Wrote)
	}
	return append(b, '}')
}

// IsZero tells whether there is no file.
func (s State) IsZero() bool {
	return s.Dir == "" && s.Path == "" && s.Last == 0 && s.Part[0] == nil && s.Part[1] == nil && s.Held == nil && s.Wrote == 0
}

// State returns the file's state. Its bytes are the File's own.
func (f *File) State() State {
	return State{Dir: f.dir, Path: f.path, Last: f.clock.last, Part: f.part, Held: f.held, Wrote: f.wrote}
}

// Handle returns a descriptor of the file behind fd that Resume can go on with, and that has no need of the file system to
// be closed (O_PATH); the caller closes it.
func Handle(fd int) (int, error) {
	h, err := unix.Open(selfFD(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("log: %w", err)
	}
	return h, nil
}

func selfFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// unhandle makes of a Handle a descriptor that can be written to. It tells whether there is a new one.
func (f *File) unhandle() bool {
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_PATH == 0 {
		return false
	}
	fd, err := unix.Open(selfFD(f.fd), unix.O_WRONLY|unix.O_APPEND|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(f.fd)
	f.fd = fd
	return true
}

// Resume goes on with a File whose descriptor (or Handle) and State came from another process. It owns the descriptor.
func Resume(fd int, s State) *File {
	f := &File{dir: s.Dir, path: s.Path, fd: fd, next: -1, now: time.Now, write: unix.Write}
	f.unhandle()
	f.clock.last = s.Last
	for i, p := range s.Part {
		f.part[i] = bytes.Clone(p)
	}
	if s.Wrote >= 0 && s.Wrote <= len(s.Held) && len(s.Held) > 0 {
		f.held, f.wrote = bytes.Clone(s.Held), s.Wrote
		f.err = unix.EIO // until the next Retry
	}
	return f
}

// FD is the descriptor of the file, or of the one that was prepared; it stays the File's.
func (f *File) FD() int {
	if f.next >= 0 {
		return f.next
	}
	return f.fd
}

// Now is the time for the next AppendAt.
func (f *File) Now() time.Time { return f.now() }

// Last is the time of the newest record in ns since 1970.
func (f *File) Last() int64 { return f.clock.last }

// Part is the line of s whose newline has not come yet. It is valid until the next call of Append.
func (f *File) Part(s Stream) []byte { return f.part[s] }

// Size is the size of the file in bytes, -1 if it can't be known.
func (f *File) Size() int64 {
	var st unix.Stat_t
	if unix.Fstat(f.fd, &st) != nil {
		return -1
	}
	return st.Size
}

// Redo repeats an AppendAt or EndAt, which do calls, that another process may have carried out in part: it began with
// the State of f and a file of size bytes. What is in the file since then is not written again.
func (f *File) Redo(size int64, do func() error) error {
	skip := int64(0)
	if now := f.Size(); size >= 0 && now > size {
		skip = now - size
	}
	write := f.write
	f.write = func(fd int, p []byte) (int, error) {
		if skip >= int64(len(p)) {
			skip -= int64(len(p))
			return len(p), nil
		}
		done := int(skip)
		skip = 0
		n, err := write(fd, p[done:])
		return done + max(n, 0), err
	}
	defer func() { f.write = write }()
	return do()
}
