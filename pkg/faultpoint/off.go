//go:build !faultpoints

package faultpoint

// Enabled tells whether the program was built with fault points.
const Enabled = false

// Hit is a point where the program may fail. In a program without fault points it returns nil.
func Hit(string) error { return nil }

// Pass is a point where there is no error to be returned: the program may die or wait there. In a program without fault
// points it does nothing.
func Pass(string) {}

// Environ is what the environment of a program that this one starts needs.
func Environ() []string { return nil }
