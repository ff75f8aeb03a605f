package stdio

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// The journal is what must outlive a sudden death of this process: the bytes that were taken from a container and have
// not become log records yet. It is shared memory (a memfd that somebody else holds too) and one pipe, through which
// all output passes. Output moves by splice(2) from the container's pipe to that one, which has no other writer, then
// by read(2) into the journal, and then by write(2) into the log. Each of the three either happened or can be seen not
// to have: FIONREAD tells how much of a batch was read from the pipe, the size of the log how much was written, and the
// time of the batch is in the journal, so that its records can be made again, byte for byte.
//
// Layout: a header, the read buffer, then one slot for each container, then the containers' unfinished lines, two
// places for each stream: one that counts and one that the next batch writes. The memory of places that were never used
// does not exist.
const (
	journalMagic = 0x314c4e524a495243 // "CRIJRNL1"
	maxSlots     = 4096
	headerSpace  = 4096
	slotSize     = 64
	placeSize    = logs.MaxLine
	slotsAt      = headerSpace + readSize
	placesAt     = slotsAt + maxSlots*slotSize
	journalSize  = placesAt + maxSlots*4*placeSize
)

// Phases of a batch.
const (
	phaseIdle    = iota
	phaseTaken   // bytes may have left the container's pipe, records may be in the log
	phaseWritten // the records are in the log, the slot may not say so yet
)

// What a batch does.
const (
	opAppend = iota // stdout or stderr bytes, by way of the pipe
	opDirect        // the same, read without the pipe
	opEnd           // the end of a stream: an unfinished line becomes a record
)

// journalHeader is one batch. Its fields are written by one thread, and read by the next process.
type journalHeader struct {
	magic  uint64
	phase  atomic.Uint64
	op     atomic.Uint64
	stream atomic.Uint64 // slot*2 + logs.Stream
	n      atomic.Int64  // bytes in the buffer once they are read from the pipe; 0: not known yet
	now    atomic.Int64  // ns since 1970
	size   atomic.Int64  // of the log before the batch
	part   atomic.Uint64 // the slot's part and last after it
	last   atomic.Int64
}

// slot is what the log of one container needs beside its file.
type slot struct {
	part [2]atomic.Uint64 // per stream: length of the unfinished line, and in the top bit which place has it
	last atomic.Int64     // time of the newest record
	mark atomic.Uint32    // for the owner of the Loop, see Streams.SetMark
	used atomic.Uint32    // there have been unfinished lines
	_    [8]uint32
}

const otherPlace = 1 << 63

// journal is the mapped memory and the pipe.
type journal struct {
	memfd, in, out int // out: where the pipe is read
	mem            []byte
	h              *journalHeader
	free           []int
	next           int // slots from here on were never used

	// lost is a batch that a former process did not finish; it is completed when its container is restored.
	lost *batch
}

type batch struct {
	op     uint64
	slot   int
	stream logs.Stream
	data   []byte
	now    time.Time
	size   int64
}

func newJournal() (*journal, error) {
	fd, err := unix.MemfdCreate("cri-journal", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // MFD_NOEXEC_SEAL came with Linux 6.3
		fd, err = unix.MemfdCreate("cri-journal", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: memfd: %w", err)
	}
	var p [2]int
	if err = unix.Ftruncate(fd, journalSize); err == nil {
		err = unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("journal: %w", err)
	}
	_, _ = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, readSize) // EPERM over the user's limit: smaller batches
	j, err := mapJournal([]int{fd, p[1], p[0]})
	if err != nil {
		closeAll(fd, p[0], p[1])
		return nil, err
	}
	j.h.magic = journalMagic
	return j, nil
}

// mapJournal maps a journal: its memory, and the writing and the reading end of its pipe. On success it owns them.
func mapJournal(files []int) (*journal, error) {
	if len(files) != 3 {
		return nil, fmt.Errorf("journal of %d files: %w", len(files), errdefs.ErrDataLoss)
	}
	var st unix.Stat_t
	if err := unix.Fstat(files[0], &st); err != nil || st.Size != journalSize {
		return nil, fmt.Errorf("journal of %d bytes: %w", st.Size, errdefs.ErrDataLoss)
	}
	mem, err := unix.Mmap(files[0], 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("journal: mmap: %w", err)
	}
	return &journal{memfd: files[0], in: files[1], out: files[2], mem: mem, h: (*journalHeader)(unsafe.Pointer(&mem[0]))}, nil
}

func (j *journal) close() {
	_ = unix.Munmap(j.mem)
	closeAll(j.memfd, j.in, j.out)
}

func (j *journal) buf() []byte { return j.mem[headerSpace : headerSpace+readSize] }

func (j *journal) slot(i int) *slot {
	return (*slot)(unsafe.Pointer(&j.mem[slotsAt+i*slotSize]))
}

func (j *journal) place(i int, s logs.Stream, other bool) []byte {
	at := placesAt + (4*i+2*int(s))*placeSize
	if other {
		at += placeSize
	}
	return j.mem[at : at+placeSize : at+placeSize]
}

// alloc returns an empty slot, -1 when there is none: that container's log is not exact over a crash.
func (j *journal) alloc() int {
	if n := len(j.free); n > 0 {
		i := j.free[n-1]
		j.free = j.free[:n-1]
		return i
	}
	if j.next == maxSlots {
		return -1
	}
	j.next++
	return j.next - 1
}

// claim takes slot i for a container that has had it in a former process.
func (j *journal) claim(i int) error {
	if i < 0 || i >= maxSlots {
		return fmt.Errorf("journal slot %d: %w", i, errdefs.ErrDataLoss)
	}
	for ; j.next <= i; j.next++ {
		j.free = append(j.free, j.next)
	}
	for k, f := range j.free {
		if f == i {
			j.free = append(j.free[:k], j.free[k+1:]...)
			return nil
		}
	}
	return fmt.Errorf("journal slot %d is taken: %w", i, errdefs.ErrDataLoss)
}

// release empties a slot and gives its memory back.
func (j *journal) release(i int) {
	if i < 0 {
		return
	}
	s := j.slot(i)
	s.part[0].Store(0)
	s.part[1].Store(0)
	s.last.Store(0)
	s.mark.Store(0)
	if s.used.Swap(0) != 0 {
		at := placesAt + 4*i*placeSize
		_ = unix.Madvise(j.mem[at:at+4*placeSize], unix.MADV_REMOVE) // madvise(2): frees the pages of the memfd
	}
	j.free = append(j.free, i)
}

// begin notes a batch before anything is taken. f is the log; size and time of the batch belong together.
func (j *journal) begin(op uint64, i int, s logs.Stream, f *logs.File) time.Time {
	j.lost = nil // its container did not come back
	now := f.Now()
	h := j.h
	h.op.Store(op)
	h.stream.Store(uint64(i)*2 + uint64(s))
	h.n.Store(0)
	h.now.Store(now.UnixNano())
	h.size.Store(f.Size())
	h.phase.Store(phaseTaken)
	return time.Unix(0, h.now.Load()) // what a repetition will see
}

// abandon ends a batch for which there was nothing to take.
func (j *journal) abandon() { j.h.phase.Store(phaseIdle) }

// commit notes that the batch is in the log, and what is left of it.
func (j *journal) commit(i int, s logs.Stream, f *logs.File) {
	old, part := j.slot(i).part[s].Load(), f.Part(s)
	next := uint64(len(part))
	if next != 0 {
		other := old&otherPlace == 0
		copy(j.place(i, s, other), part)
		j.slot(i).used.Store(1)
		if other {
			next |= otherPlace
		}
	}
	j.h.part.Store(next)
	j.h.last.Store(f.Last())
	j.h.phase.Store(phaseWritten)
	j.settle(i, s)
}

// settle makes the slot say what the header does. It may be repeated.
func (j *journal) settle(i int, s logs.Stream) {
	j.slot(i).part[s].Store(j.h.part.Load())
	j.slot(i).last.Store(j.h.last.Load())
	j.h.phase.Store(phaseIdle)
}

// state completes st by what the slot says.
func (j *journal) state(i int, st *logs.State) {
	sl := j.slot(i)
	st.Last = sl.last.Load()
	for s := range st.Part {
		p := sl.part[s].Load()
		n := min(p&^otherPlace, placeSize)
		st.Part[s] = bytes.Clone(j.place(i, logs.Stream(s), p&otherPlace != 0)[:n])
	}
}

// recover finds out what a former process was doing when it died. What its pipe holds is moved out, so that the next
// batch finds it empty.
func (j *journal) recover() error {
	h := j.h
	if h.magic != journalMagic {
		return fmt.Errorf("journal of another kind: %w", errdefs.ErrDataLoss)
	}
	b := &batch{
		op: h.op.Load(), slot: int(h.stream.Load() / 2), stream: logs.Stream(h.stream.Load() % 2),
		now: time.Unix(0, h.now.Load()), size: h.size.Load(),
	}
	switch h.phase.Load() {
	case phaseTaken:
	case phaseWritten:
		j.settle(b.slot, b.stream)
		return nil
	default:
		return nil
	}
	if b.slot >= maxSlots {
		return fmt.Errorf("journal: batch of slot %d: %w", b.slot, errdefs.ErrDataLoss)
	}
	left, err := unix.IoctlGetInt(j.out, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("journal: pipe: %w", err)
	}
	n := int(h.n.Load())
	if n == 0 {
		n = left
	}
	if n > readSize || left > n {
		return fmt.Errorf("journal: batch of %d bytes, %d in the pipe: %w", n, left, errdefs.ErrDataLoss)
	}
	h.n.Store(int64(n))
	if err := j.fill(n-left, n); err != nil {
		return err
	}
	b.data = j.buf()[:n]
	j.lost = b
	return nil
}

// fill reads from the pipe until the buffer has n bytes; it has at of them.
func (j *journal) fill(at, n int) error {
	for at < n {
		m, err := retryIntr(func() (int, error) { return unix.Read(j.out, j.buf()[at:n]) })
		if err != nil || m <= 0 {
			return fmt.Errorf("journal: pipe: %w", err)
		}
		at += m
	}
	return nil
}

// redo completes the batch that a former process has left to slot i, if there is one.
func (j *journal) redo(i int, f *logs.File, records *logs.Buffer) {
	b := j.lost
	if b == nil || b.slot != i {
		return
	}
	j.lost = nil
	_ = f.Redo(b.size, func() error { // an error stays with f, see logs.File.Err
		if b.op == opEnd {
			return f.EndAt(b.now, records, b.stream)
		}
		return f.AppendAt(b.now, records, b.stream, b.data)
	})
	j.commit(i, b.stream, f)
}
