// Package cutover proves the cutover, the way back and both ends of a run, end to end. It holds
// tests only.
//
// It knows the product as a program (built once with the tag "failpoint") and must not import
// engine, steps or runbook. What is right is decided by internal/testpg: every commit that a
// client was told of is there, none that was refused is, and tables that nobody writes any more are
// equal row by row. Every test proves that its fault fired. internal/faults asks the same at every
// failpoint; here each promise of the cutover has a test that reads like it.
package cutover
