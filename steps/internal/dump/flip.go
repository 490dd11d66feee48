package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// FlipStatements gives what the transaction that opens the target runs there: the firing modes of
// triggers and rules that would have fired for our own sessions, constraints that old rows break,
// and event triggers last. It looks at the target first: an object that is not there (a target that
// somebody else prepared) or that has its constraint already (a second cutover) is passed over, so
// that no statement can stop a flip.
func FlipStatements(ctx context.Context, source, target *pgx.Conn, s *scope.Scope) ([]string, error) {
	objects, err := PostData(ctx, source, s)
	if err != nil {
		return nil, err
	}
	var keep []Object
	for _, o := range objects {
		if o.NotCarried != "" || len(o.AtFlip) == 0 {
			continue
		}
		there, err := atFlipThere(ctx, target, o)
		if err != nil {
			return nil, err
		}
		if there != (o.Kind == Check) {
			keep = append(keep, o)
		}
	}
	return AtFlip(keep), nil
}

// checkSQL finds a constraint of a table or, without a table, of any domain: two domains of one
// constraint's name are told apart by nothing that a plan shows, so either counts.
const checkSQL = `
SELECT EXISTS (SELECT FROM pg_constraint con LEFT JOIN pg_class c ON c.oid = con.conrelid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE con.conname::text = $3 AND con.contype IN ('c', 'n')
   AND coalesce(n.nspname::text, '') = $1 AND coalesce(c.relname::text, '') = $2)`

func atFlipThere(ctx context.Context, target *pgx.Conn, o Object) (bool, error) {
	sql := lookSQL[o.Kind]
	if o.Kind == Check {
		sql = checkSQL
	}
	var there bool
	if err := target.QueryRow(ctx, sql, o.Table.Schema, o.Table.Name, o.Name).Scan(&there); err != nil {
		return false, fmt.Errorf("looking for %s: %w", o, err)
	}
	return there, nil
}
