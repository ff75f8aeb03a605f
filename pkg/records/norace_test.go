//go:build !race

package records

const slowdown = 1
