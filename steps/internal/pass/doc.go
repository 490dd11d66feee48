// Package pass brings one side up to a snapshot of the other: it takes the keys of changed rows
// out of the deltas, reads those rows as they are now, applies them and forgets the keys.
//
// It is side-neutral: `from` has the application and our capture, `to` follows. It must not know
// steps, runbooks or which side is the source. Installing capture, loading tables and the freeze
// are other packages' work; a pass touches only the tables it was given.
//
// Failure behaviour: a pass that fails or dies anywhere leaves both sides as they were, or `to`
// at the snapshot and the keys not yet forgotten; the next pass then applies them once more, which
// changes nothing. Row images of tables without a key are not idempotent: the target remembers the
// snapshot up to which they were applied, in the transaction that applied them.
package pass
