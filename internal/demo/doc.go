// Package demo is a whole migration on throw-away servers: two clusters of different majors, a
// filled source, writers that never stop, and a proof that nothing was lost which shares no code
// with the product. The command `pgrunbook demo` and the tests of the examples run it.
//
// It knows the product only as a program to run: it must not import engine, steps or runbook.
package demo
