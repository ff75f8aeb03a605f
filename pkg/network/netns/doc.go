// Package netns makes, pins, lists and removes network namespaces by name.
//
// A pinned namespace is a bind mount of its nsfs file on an empty file in a directory that `ip netns` reads too
// (/run/netns). It lives as long as the mount or any process in it, so it survives the process that made it. The
// directory is made a shared mount, as ip-netns(8) does, so that unpinning reaches every mount namespace that got a
// copy of it.
//
// A Pool makes namespaces ahead of the pods that will want them; until they are pinned they live as long as the process.
//
// Namespaces are entered by threads, never by the process: a goroutine locks its thread, switches, works, switches
// back. A thread that can't be switched back is ended together with its goroutine.
package netns
