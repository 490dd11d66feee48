// Package suites lets PostgreSQL's own tests be the application: its isolation specs and its
// regression tests write to a source whose tables pgrunbook has captured, while it makes passes. It
// holds tests only.
//
// It knows the product as a program and must not import engine, steps or runbook. The specs come
// from Debian's source package, isolationtester from its client package, by internal/testpg, whose
// comparison decides what is right: what the program did not refuse by name is equal, row by row.
// What it refused, and why, is in testdata, so that a change of that is seen; renew it with
//
//	PGRUNBOOK_SOAK=1 go test ./internal/suites -count 1 -timeout 2h -update
//
// PGRUNBOOK_REGRESS=insert,update plays some regression tests alone, both ways.
//
// Nobody looks whether the tests pass by PostgreSQL's own measure: they run on tables that are kept
// from one permutation to the next, with triggers on them.
package suites
