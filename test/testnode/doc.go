// Package testnode is a node for tests: cri-server, a registry with the test images and their clients in a mount and
// network namespace of their own, on directories of their own. Nothing that runs in it can reach the machine's mounts,
// interfaces or netfilter rules; what it could leave outside (cgroups, processes, shared memory, files) is compared
// before and after.
//
// Programs enter the namespaces with Isolate; tests use internal/testns for that. Start then brings the node up. The
// process that entered is a child of a subreaper outside, so that every process of the node is a descendant of
// that subreaper, however it was detached, and can be found and ended.
package testnode
