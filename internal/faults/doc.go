// Package faults proves that a runner may die, stop or meet another runner at any boundary and
// nothing is lost. It holds tests only.
//
// It knows the product as a program (built once with the tag "failpoint") and by the names of its
// failpoints, which it finds by reading the source: it must not import engine, steps or runbook.
// What is right is decided by internal/testpg alone: every commit that a client was told of is on
// the target, none that was refused is, every row of the closed source is equal to the target's
// before its first write, and at no time both sides take writes.
//
// Every test proves that its fault fired. The long form runs with PGRUNBOOK_SOAK=1. A failure
// prints the runner's output and the schedule that led to it; PGRUNBOOK_FAULTS_SEED repeats one.
package faults
