// Package preflight looks at both servers before anything is done to them: versions, rights,
// sizes, and everything known to stop a migration half way. All checks run in one go, each finding
// names its fix, and every query is read-only.
//
// A finding is not an error: an error means that a check could not look, and becomes a finding that
// says so, since one look shall name everything. To add a check, write a
// function that takes Facts in the file of its family and add one line to the list in checks.go; a
// code that was published once is never given to another check.
//
// It must not know steps or the protocol; what it needs of them comes in Input.
package preflight
