// Package hygiene holds tests of the source tree itself: that packages say what they are, that files stay readable, that
// imports run one way, and that a new dependency shows in review. It has no code of its own.
package hygiene
