//go:build !crashpoints

// Package crash lets the daemon die right behind one of its writes, to disk or
// kernel, in a program that is built with the tag crashpoints: for the
// end-to-end test of just that. Everywhere else it does nothing.
package crash

// Point is behind a write.
func Point(string) {}
