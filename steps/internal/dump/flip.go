package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// FlipStatements gives what the transaction that opens the target runs there: the firing modes of
// triggers and rules that would have fired for our own sessions, or have another mode on the source by now, constraints
// that old rows break, and event triggers last. What a person left off or on a target of their own (existing) stays so. It
// looks at the target first: an object that is not there (a target that somebody else prepared) or is as on the source
// already (a second cutover) is passed over, so that no statement can stop a flip.
func FlipStatements(ctx context.Context, source, target *pgx.Conn, s *scope.Scope, existing bool) ([]string, error) {
	objects, err := PostData(ctx, source, s)
	if err != nil {
		return nil, err
	}
	modes, err := readModes(ctx, target)
	if err != nil {
		return nil, err
	}
	differs := func(o Object) bool {
		mode, there := modes[o.fires()]
		return there && mode != o.mode && (!existing || len(o.AtFlip) > 0)
	}
	turned := map[string]bool{} // names of triggers: on a partitioned table one takes those of its partitions along
	for _, o := range objects {
		turned[o.Name] = turned[o.Name] || o.Kind == Trigger && differs(o)
	}
	var keep []Object
	for _, o := range objects {
		_, there := modes[o.fires()]
		switch {
		case o.turn != "":
			if differs(o) || there && o.Partition && turned[o.Name] {
				o.AtFlip = []string{o.turn}
				keep = append(keep, o)
			}
		case o.Kind == Check:
			there, err := checkThere(ctx, target, o)
			if err != nil {
				return nil, err
			}
			if !there {
				keep = append(keep, o)
			}
		}
	}
	return AtFlip(keep), nil
}

// firing names what has a mode.
type firing struct{ Kind, Schema, Table, Name string }

func (o Object) fires() firing { return firing{string(o.Kind), o.Table.Schema, o.Table.Name, o.Name} }

const modesSQL = `
SELECT 'trigger', n.nspname::text, c.relname::text, t.tgname::text, t.tgenabled::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal
UNION ALL SELECT 'rule', n.nspname::text, c.relname::text, r.rulename::text, r.ev_enabled::text FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.rulename <> '_RETURN'
UNION ALL SELECT 'event_trigger', '', '', evtname::text, evtenabled::text FROM pg_event_trigger`

// readModes gives the firing modes of a side.
func readModes(ctx context.Context, conn *pgx.Conn) (map[firing]string, error) {
	rows, err := conn.Query(ctx, modesSQL)
	if err != nil {
		return nil, fmt.Errorf("reading the modes of triggers: %w", err)
	}
	out := map[firing]string{}
	var f firing
	var mode string
	if _, err = pgx.ForEachRow(rows, []any{&f.Kind, &f.Schema, &f.Table, &f.Name, &mode}, func() error { out[f] = mode; return nil }); err != nil {
		return nil, fmt.Errorf("reading the modes of triggers: %w", err)
	}
	return out, nil
}

// checkSQL finds a constraint of a table, or of a domain.
const checkSQL = `
SELECT EXISTS (SELECT FROM pg_constraint con LEFT JOIN pg_class c ON c.oid = con.conrelid LEFT JOIN pg_type t ON t.oid = con.contypid JOIN pg_namespace n ON n.oid = coalesce(c.relnamespace, t.typnamespace)
 WHERE con.conname::text = $3 AND con.contype IN ('c', 'n') AND n.nspname::text = $1 AND coalesce(c.relname, t.typname)::text = $2 AND (con.contypid <> 0) = $4)`

func checkThere(ctx context.Context, target *pgx.Conn, o Object) (there bool, err error) {
	on, domain := o.Table, o.domain.Name != ""
	if domain {
		on = o.domain
	}
	if err := target.QueryRow(ctx, checkSQL, on.Schema, on.Name, o.Name, domain).Scan(&there); err != nil {
		return false, fmt.Errorf("looking for %s: %w", o, err)
	}
	return there, nil
}
