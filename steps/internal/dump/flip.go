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
	return flipStatements(ctx, source, target, s, func(Object) (bool, error) { return true, nil })
}

// LeftAtFlip gives those of FlipStatements that a target still needs which takes writes: a person who opens it by hand does
// not run them.
func LeftAtFlip(ctx context.Context, source, target *pgx.Conn, s *scope.Scope) ([]string, error) {
	return flipStatements(ctx, source, target, s, func(o Object) (bool, error) {
		sql := modeSQL[o.Kind]
		if sql == "" {
			return true, nil
		}
		var modes [2]string
		for i, conn := range []*pgx.Conn{source, target} {
			if err := conn.QueryRow(ctx, sql, o.Table.Schema, o.Table.Name, o.Name).Scan(&modes[i]); err != nil {
				return false, fmt.Errorf("asking for the mode of %s: %w", o, err)
			}
		}
		return modes[0] != modes[1], nil
	})
}

// modeSQL gives the firing mode of what may have another on the target; its parameters are schema, table and name.
var modeSQL = map[Kind]string{
	Rule: `SELECT coalesce((SELECT r.ev_enabled::text FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname::text = $1 AND c.relname::text = $2 AND r.rulename::text = $3), '')`,
	Trigger: `SELECT coalesce((SELECT t.tgenabled::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname::text = $1 AND c.relname::text = $2 AND t.tgname::text = $3), '')`,
	EventTrigger: `SELECT coalesce((SELECT evtenabled::text FROM pg_event_trigger WHERE evtname::text = $3 AND $1::text IS NOT NULL AND $2::text IS NOT NULL), '')`,
}

func flipStatements(ctx context.Context, source, target *pgx.Conn, s *scope.Scope, needed func(Object) (bool, error)) ([]string, error) {
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
		if there == (o.Kind == Check) {
			continue
		}
		if still, err := needed(o); err != nil {
			return nil, err
		} else if still {
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
