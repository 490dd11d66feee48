// Package gate makes a side's gate: the BEFORE statement trigger on every table in scope, the
// sequence that is its flag, and the counter of refused writes. Package freeze holds and flips it.
//
// It is side-neutral and knows tables only by name. It must not know passes, steps or who owns the
// traffic.
//
// Failure behaviour: tables are gated one per transaction under the lock etiquette of package
// capture; everything may be called again after any death. A gate fails closed for writers (an
// error of the run's SQLSTATE) and never keeps a reader.
package gate
