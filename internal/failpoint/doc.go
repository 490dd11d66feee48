// Package failpoint marks the boundaries at which a runner may die. In builds with the tag
// "failpoint" a test kills, stops or delays the process there; in every other build Hit is empty.
//
// A name is "package.boundary", written once in the code that passes it.
package failpoint
