package native

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bell wakes one OS thread that waits for it, straight through the kernel (futex(2)). A channel would have the Go
// scheduler hand the goroutine, which is bound to its thread, from one thread to the next: some 0.1 ms. It may ring
// before somebody waits; rings that nobody has heard yet count as one. The zero value is silent.
type bell struct{ rung atomic.Uint32 }

// ring wakes who waits, or will.
func (b *bell) ring() {
	if b.rung.Swap(1) == 0 {
		const wake = 1 // FUTEX_WAKE
		_, _, _ = unix.Syscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&b.rung)), wake|futexPrivate, 1)
	}
}

// heard tells whether it has rung since the last time.
func (b *bell) heard() bool { return b.rung.CompareAndSwap(1, 0) }

// wait waits until it rings, at most for limit; negative: for ever.
func (b *bell) wait(limit time.Duration) bool {
	end := time.Now().Add(limit)
	for !b.heard() {
		var ts *unix.Timespec
		if limit >= 0 {
			left := time.Until(end)
			if left <= 0 {
				return false
			}
			t := unix.NsecToTimespec(left.Nanoseconds())
			ts = &t
		}
		const wait = 0 // FUTEX_WAIT
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&b.rung)), wait|futexPrivate, 0,
			uintptr(unsafe.Pointer(ts)), 0, 0)
	}
	return true
}

const futexPrivate = 128 // FUTEX_PRIVATE_FLAG
