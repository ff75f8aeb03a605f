//go:build tools

// Package critest pins the conformance suite. Its own module keeps the suite's large dependency tree away from cri-server.
//
// `go test -c sigs.k8s.io/cri-tools/cmd/critest` builds a package that holds only a test file, so what that file imports
// has to be named here for go.sum to cover it.
package critest

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"

	_ "github.com/onsi/ginkgo/v2/ginkgo" // critest --parallel runs it
)
