// Package native is this project's own engine: it makes containers without an OCI runtime binary.
//
// # The model
//
// The stub (stub/stub.c) is a static program of a few KB without any library. It is executed once, from a sealed memfd:
// that process, the nursery, lies in a mount namespace with nothing but an empty file system. A container starts as a fork
// of it, straight into the container's cgroup and namespaces, and a child of this process. It waits on a socket while this
// package builds the container around it from outside: a thread that has joined the stub's namespaces makes every mount by
// file descriptor (fsopen(2), open_tree(2), openat2(2) below the root), over the empty file system, and goes back. So the
// host's mounts are never in a container's mount namespace, and how many there are makes no difference. Two kinds of
// containers begin with a copy of them and leave them by pivot_root(2): those with hooks, which use the host's files, and
// those with a user namespace, in which the kernel mounts proc and sysfs only beside others.
// Meanwhile the cgroup is made, which the stub joins when it is ready; then the stub takes on the container's identity, and
// loads the seccomp filter if that allows what the stub has yet to do. Start tells it to become its program.
// An exec session is a fork of the nursery too; it joins the namespaces of the container's first process through one pidfd.
// It has all its orders before it is forked, and is waited for once, where nothing is to be done from outside in between.
//
// What is the same for all containers of a kind, and holds nothing of the host's, is made ahead of them: the file systems of
// /dev with their nodes, and, where a process need not be born into its cgroup (on v1 hierarchies only), a stub in new
// namespaces with their proc and sysfs. Such a kit is made when nothing was created for some milliseconds, one for each of
// the last two kinds of containers, and thrown away half a minute after the last of its kind. A container that comes too
// soon is made all at once, and is the same.
//
// The engine resolves nothing through the container's own /proc, never follows a link out of its root, hands no file
// descriptor to the container but 0, 1 and 2, and leaves no mount on the host. Everything it makes in the kernel goes away
// with the container's processes; on disk it writes only to Config.Dir, and only for hooks.
//
// A created container costs a pidfd and a socket, a running one a pidfd; there is no goroutine and no thread for it. An
// engine costs the nursery, some 100 KB of the kernel's memory, and up to two idle threads; a kit costs about as much again.
//
// # Kernel
//
// Linux 5.12 at least (mount_setattr(2)); New says so. Newer features are used where they are: proc's pidns= option
// (6.17; before, the stub mounts it), overlay layers by descriptor (6.13), PIDFD_GET_*_NAMESPACE (6.11).
//
// # The stub
//
// The binaries stub/stub_amd64 and stub/stub_arm64 are committed, so that `go build` needs no C compiler. To verify them
// run `go generate` in this directory with gcc and the other architecture's cross compiler installed and look at
// `git status`: the build is reproducible with the same compiler. A test checks that the sources are the ones that the
// committed binaries were made from, and, where gcc is there, that they can be built.
package native

//go:generate stub/build.sh
