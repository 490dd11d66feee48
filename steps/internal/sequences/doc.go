// Package sequences carries the state of sequences from one side to the other: it reads them in
// few round trips, computes where each goes on, and sets them by ALTER SEQUENCE ... RESTART, which
// is transactional and drops the values that other sessions have cached (setval does neither).
//
// It knows no freeze and no direction: from and to are the caller's. A sequence never moves
// backwards on the side that is set. Sequences of schema pgrunbook are refused: one of them is the
// gate. An error leaves nothing set, as far as the caller's transaction is rolled back.
package sequences
