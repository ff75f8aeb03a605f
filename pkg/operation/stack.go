package operation

// growth is what a pod's operations need on their stacks, JSON and netlink included.
const growth = 16 << 10

// GrowStack gives the calling goroutine a stack of some 32 KiB at once. A goroutine begins with 2 to 8 KiB, and each doubling
// copies what is there: for one that goes deep soon after its start, as an operation does, that was a twentieth of all its
// work. The next garbage collection takes back what is not used.
//
//go:noinline
func GrowStack() {
	var room [growth]byte
	touch(&room)
}

//go:noinline
func touch(room *[growth]byte) { room[growth/2] = 1 }
