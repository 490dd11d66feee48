// Package engine walks a plan: it knows steps, phases, plans, events, approvals and the order of
// things, and nothing of HCL, SQL or any step kind.
//
// A step's Apply is idempotent from its checkpoint; the walk records each step in the Journal
// before its first act and after its last one, so that a walk that died anywhere is continued by
// running it again. A journal write that fails stops the walk.
package engine
