package pass

import (
	"fmt"
	"strings"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// UnfitError says that row images of a table without a key cannot be applied: they hold values that its columns
// on the other side do not take, since they were written before its types changed, or by a label of an enum that
// has another name now; or a partition was truncated, and they do not say which rows were in it; or a promoted standby
// may have given the ids of their transactions out twice. Or a partition of a
// table with a key was, and the other side has none in its place. No later pass can apply that; the table has to be
// loaded again, which leaves it out.
type UnfitError struct {
	Table scope.Table
	Err   error
}

func (e *UnfitError) Error() string {
	if keyed(e.Table) {
		return fmt.Sprintf("a TRUNCATE of %s cannot be applied: %v", tableName(e.Table), e.Err)
	}
	if !unfit(e.Err) {
		return fmt.Sprintf("row images of %s cannot be applied: %v", tableName(e.Table), e.Err)
	}
	return fmt.Sprintf("row images of %s do not fit its columns there: %v", tableName(e.Table), e.Err)
}

// Unwrap gives what the server said.
func (e *UnfitError) Unwrap() error { return e.Err }

// refused names the key of To that keeps rows out which From has, where err says so.
func (j *job) refused(err error, t scope.Table) error {
	return scope.Refused(err, "applying the changed rows of", t, j.p.cfg.To.Side(), j.p.cfg.From.Side())
}

// unfit tells values that do not fit (class 22 of SQLSTATE, data exception) from other errors.
func unfit(err error) bool { return strings.HasPrefix(pg.SQLState(err), "22") }

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
