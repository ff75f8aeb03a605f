// Package stream is what a container of the torture run writes: two streams of numbered lines, each a function of the
// container's seed, so that every byte of a log can be checked without having kept any; and Counter, a file shared by the
// container and whoever checks it, in which the program tells how far its write(2)s have come, past every part of the
// runtime.
package stream

import "strconv"

// The streams of a process, as the CRI log format names them.
const (
	Stdout = iota
	Stderr
)

// Tail is what a program that ends by itself, or by SIGTERM, writes last to its stdout: a line without an end.
const Tail = "that is all"

// mix is SplitMix64's finalizer: neighbouring numbers give unlike ones.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// Which is the stream that a program writes to at its n-th step.
func Which(seed uint64, n int64) int {
	if mix(seed^uint64(n)*0x9e3779b97f4a7c15)%4 == 0 {
		return Stderr
	}
	return Stdout
}

// AppendLine appends the n-th line of a stream, newline included. Most are short; some are longer than the 16 KiB that a
// record of a CRI log holds.
func AppendLine(b []byte, seed uint64, which int, n int64) []byte {
	h := mix(seed + uint64(which)<<62 + uint64(n)*0x9e3779b97f4a7c15)
	length := 20 + h%180
	switch h >> 32 % 200 {
	case 0:
		length = 16000 + h%20000
	case 1, 2, 3, 4, 5, 6, 7, 8:
		length = 200 + h%4000
	case 9:
		length = 0
	}
	start := len(b)
	if length > 0 {
		b = append(strconv.AppendInt(b, n, 10), ' ')
	}
	for i := uint64(0); uint64(len(b)-start) < length; i++ {
		b = append(b, byte('!'+(h+i*7)%90))
	}
	return append(b, '\n')
}
