package stream

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counterSize is the size of a counter's file in bytes.
const counterSize = 64

// Counter is shared memory. The program in the container writes it, the checker reads it.
type Counter struct {
	// Lines are how many lines of each stream have been written: write(2) has returned for all their bytes.
	Lines [2]atomic.Int64
	// Longest is the longest write(2), in ns.
	Longest atomic.Int64
	// Phase tells where the program is.
	Phase atomic.Int64
	// Errno is of the write(2) that failed, 0 if none has.
	Errno atomic.Int64
}

// The phases of a program.
const (
	NotBegun = iota
	Writing  // SIGTERM is understood from now on
	Ending   // all is written; it exits with its code
)

// CreateCounter makes the file of a counter that has counted nothing.
func CreateCounter(path string) error {
	if err := os.WriteFile(path, make([]byte, counterSize), 0o666); err != nil {
		return err
	}
	return os.Chmod(path, 0o666) // whatever the umask is: root in a user namespace is somebody else here
}

// OpenCounter maps a counter. The mapping is the caller's, until Close.
func OpenCounter(path string, writable bool) (*Counter, error) {
	flags, prot := unix.O_RDONLY, unix.PROT_READ
	if writable {
		flags, prot = unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("counter %s: %w", path, err)
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(fd, 0, counterSize, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("counter %s: %w", path, err)
	}
	return (*Counter)(unsafe.Pointer(unsafe.SliceData(b))), nil
}

// Close unmaps the counter.
func (c *Counter) Close() {
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(c)), counterSize))
}
