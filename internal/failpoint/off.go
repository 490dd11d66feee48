//go:build !failpoint

package failpoint

// Enabled reports whether failpoints are compiled in.
const Enabled = false

// Hit does nothing in a release build.
func Hit(string) {}

// Mutant is false in a release build, so that the compiler leaves out what a mutant would do.
func Mutant(string) bool { return false }
