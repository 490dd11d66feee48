package pass

import "github.com/pgrunbook/pgrunbook/internal/pg"

// clashes says whether an upsert failed for a reason that deleting all keys first removes: values
// that moved between rows (unique, exclusion), an identity column that may not be updated, a
// deferrable key that cannot arbitrate, a row that would change its partition.
func clashes(err error) bool {
	switch pg.SQLState(err) {
	case "23505", "23P01", "428C9", "55000", "0A000":
		return true
	}
	return false
}

// forGood says whether a clash will be there in every pass.
func forGood(err error) bool { return pg.SQLState(err) == "428C9" || pg.SQLState(err) == "55000" }
