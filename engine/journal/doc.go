// Package journal keeps the durable record of a run on the target, in schema pgrunbook: the
// accepted plan, steps and their cursors, work items, approvals, who may write, and events.
//
// It knows no step kind, no HCL and no protocol: steps decide what a cursor or an item means. It
// must not decide who owns the traffic; it records what the flip decided.
//
// Failure behaviour: a write that fails is returned and stops the walk. Writes are idempotent
// (insert or compare), so that a lost acknowledgement is harmless. Everything that a runner writes
// is fenced by the run's epoch: a runner that was replaced gets an engine.Error of ClassHeld. The
// row of table run changes only when a runner takes over, because every chunk in flight holds it
// FOR SHARE; whatever changes more often has a table of its own.
package journal
