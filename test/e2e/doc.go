// Package e2e tests the built binaries as an operator and a kubelet use them: a test node (package testnode) per test,
// crictl as a program, and the CRI over its socket. It runs with CRI_SERVER_E2E=1 only, as `make test` does, since it
// needs bin/cri-server, bin/cri-monitor, bin/crictl and the image assets.
//
// Every test ends with a leak check of its node against the state before: mounts, network namespaces, interfaces,
// netfilter rules, cgroups, processes, and files named by an object that was removed.
package e2e
