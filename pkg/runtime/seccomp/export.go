//go:build cgo

package seccomp

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	lib "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// export goes through a memfd: libseccomp before 2.6 writes to files only, and a pipe would fill.
func export(f *lib.ScmpFilter) ([]byte, error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "seccomp")
	defer file.Close()
	if err := f.ExportBPF(file); err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(file)
}

// enosys makes instructions to go before a filter, which answer ENOSYS to calls newer than the profile. With the
// default EPERM a libc that tries a new call first (clone3, faccessat2) would take it as a refusal instead of falling
// back to the old one. Jumps of classic BPF are relative, so the filter behind needs no change.
func enosys(newest map[uint32]uint32) []byte {
	const x32 = 1 << 30
	var prog []byte
	op := func(code uint16, jt, jf uint8, k uint32) {
		prog = binary.NativeEndian.AppendUint16(prog, code)
		prog = append(prog, jt, jf)
		prog = binary.NativeEndian.AppendUint32(prog, k)
	}
	for _, arch := range slices.Sorted(maps.Keys(newest)) {
		op(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offArch)
		op(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 4, arch)
		op(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offNr)
		op(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 2, 0, x32)
		op(unix.BPF_JMP|unix.BPF_JGT|unix.BPF_K, 0, 1, newest[arch])
		op(unix.BPF_RET|unix.BPF_K, 0, 0, unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS))
	}
	return prog
}
