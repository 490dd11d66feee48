// Package compare proves that two sides hold the same rows, while the application writes: it asks
// for an exact pass, opens transactions on both sides that see what that pass left, and compares
// counts and sums of row hashes. Equal sums end it; where they differ, the rows of a few hash
// buckets are read on both sides and the differing keys and columns are named.
//
// It knows no freeze and no journal; who is from and who is to is the caller's affair. Rows are
// compared by the text of their columns, by name, under pinned settings, so physical order, column
// order and a role's settings do not matter. Numbers that print differently are different (1.0 and
// 1.00), as are texts that only compare as equal (case, trailing blanks).
//
// A table that was rewritten, swapped or truncated while it was read is read again with new
// snapshots. An error means that nothing was proved; differences are a result, not an error.
package compare
