// Package failpoint marks the boundaries at which a runner may die. In builds with the tag
// "failpoint" a test kills, stops or delays the process there; in every other build Hit is empty.
//
// A name is "package.boundary", written once in the code that passes it.
//
// Mutant, in the same builds, leaves a rule of the protocol out, so that tests can show that they
// would notice; in every other build it is false and the compiler removes what depends on it.
package failpoint
