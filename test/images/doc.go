// Package images builds the container images that the tests and the demo use, and serves them from a read-only registry
// in memory, so that nothing is fetched from the internet at run time.
//
// The ingredients are Debian's dynamic busybox (its sh executes other applets as processes, as the conformance suite
// expects; busybox-static's does not), the C library beside it, and testbox, a small static program of this repository
// that stands for nginx, httpd and the like. `fetch-busybox` and `go build` leave them in an assets directory; Load
// reads them; Catalog makes every image from them. Equal ingredients give equal digests.
//
// The registry serves any repository under any registry's name: a runtime is pointed at it with a mirror. Repositories
// below private/, stall/ and corrupt/ misbehave on purpose, see Registry.
package images
