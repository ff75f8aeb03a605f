//go:build race

package records

// slowdown is what the race detector costs.
const slowdown = 5
