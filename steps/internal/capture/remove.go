package capture

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// oursSQL lists our trigger functions that carry the run's comment, and their triggers. Whatever
// stands on one of these functions was made by us, wherever a table was moved or renamed to.
const oursSQL = `
SELECT p.proname::text, coalesce(n.nspname::text, ''), coalesce(c.relname::text, ''), coalesce(c.oid, 0::oid), coalesce(t.tgname::text, '')
  FROM pg_proc p
  LEFT JOIN pg_trigger t ON t.tgfoid = p.oid AND NOT t.tgisinternal
  LEFT JOIN pg_class c ON c.oid = t.tgrelid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pgrunbook') AND p.pronargs = 0
   AND p.proname ~ $1 AND obj_description(p.oid, 'pg_proc') = $2
 ORDER BY 1, 2, 3, 5`

// Owner is a trigger function of ours with the relations that it stands on.
type Owner struct {
	Function string // quoted and qualified, without ()
	Triggers []Placed
}

// Placed is one trigger on one relation.
type Placed struct {
	Relation scope.Name
	OID      uint32
	Trigger  string
}

// Ours finds trigger functions of ours by a pattern of their name, for this run only.
func Ours(ctx context.Context, conn *pgx.Conn, run scope.Run, pattern string) ([]Owner, error) {
	rows, err := conn.Query(ctx, oursSQL, pattern, Remark(run))
	if err != nil {
		return nil, fmt.Errorf("looking for our triggers: %w", err)
	}
	var list []Owner
	var function, schema, table, trigger string
	var oid uint32
	_, err = pgx.ForEachRow(rows, []any{&function, &schema, &table, &oid, &trigger}, func() error {
		name := pg.Name(Schema, function)
		if len(list) == 0 || list[len(list)-1].Function != name {
			list = append(list, Owner{Function: name})
		}
		if trigger != "" {
			o := &list[len(list)-1]
			o.Triggers = append(o.Triggers, Placed{Relation: scope.Name{Schema: schema, Name: table}, OID: oid, Trigger: trigger})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for our triggers: %w", err)
	}
	return list, nil
}

// RemoveTriggers makes functions of ours do nothing, which frees the application at once and needs
// no lock on a table, then takes their triggers off, one relation per transaction, and drops them.
// It may be called again after any death.
func RemoveTriggers(ctx context.Context, conn *pgx.Conn, run scope.Run, pattern string, onWait OnWait) error {
	owners, err := Ours(ctx, conn, run, pattern)
	if err != nil {
		return err
	}
	for _, o := range owners {
		if _, err := conn.Exec(ctx, noopSQL(o.Function)); err != nil {
			return fmt.Errorf("silencing %s: %w", o.Function, err)
		}
	}
	failpoint.Hit("capture.silenced")
	for oid, placed := range byRelation(owners) {
		rel := placed[0].Relation
		err := WithLock(ctx, conn, rel, oid, pg.AccessExclusive, onWait, func(ctx context.Context, tx pgx.Tx) error {
			for _, p := range placed {
				if _, err := tx.Exec(ctx, dropSQL(rel, p.Trigger)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("taking our triggers off %s: %w", pg.Name(rel.Schema, rel.Name), err)
		}
		failpoint.Hit("capture.untriggered")
	}
	for _, o := range owners {
		if _, err := conn.Exec(ctx, "DROP FUNCTION IF EXISTS "+o.Function+"()"); err != nil {
			return fmt.Errorf("dropping %s: %w", o.Function, err)
		}
	}
	return nil
}

func byRelation(owners []Owner) map[uint32][]Placed {
	all := map[uint32][]Placed{}
	for _, o := range owners {
		for _, p := range o.Triggers {
			all[p.OID] = append(all[p.OID], p)
		}
	}
	return all
}

// Forget takes one table's capture off a side: triggers, function, what they recorded, and the record
// of it. The table may be a partition of another captured one by now.
func Forget(ctx context.Context, conn *pgx.Conn, run scope.Run, t scope.Table, onWait OnWait) error {
	if err := RemoveTriggers(ctx, conn, run, fmt.Sprintf("^capture_%d$", t.ID), onWait); err != nil {
		return err
	}
	statements := []string{
		fmt.Sprintf("DELETE FROM pgrunbook.truncated WHERE rel = %d", t.ID), fmt.Sprintf("DELETE FROM pgrunbook.captured WHERE id = %d", t.ID),
		"DROP TABLE IF EXISTS " + ImageName(t.ID),
	}
	if t.Identity == scope.ByKey && t.Key != nil {
		statements = append(statements, fmt.Sprintf("DELETE FROM %s WHERE rel = %d", DeltaName(t.Key.Shape), t.ID))
	}
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("forgetting %s: %w", pg.Name(t.Schema, t.Name.Name), err)
		}
	}
	return nil
}

// Remove takes everything off a side that this package made there for the run: functions first
// become no-ops, triggers go one relation per transaction, then the tables. The schema stays while
// anything else is in it (a gate, a journal) and where a DBA made it. It may be called again after
// any death; objects of another run are refused.
func Remove(ctx context.Context, srv *pg.Server, run scope.Run, onWait OnWait) error {
	conn, err := srv.Connect(ctx, pg.Use{Name: "capture"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	there, err := Owned(ctx, conn, run)
	if err != nil || !there {
		return err
	}
	if err := RemoveTriggers(ctx, conn, run, "^capture_[0-9]+$", onWait); err != nil {
		return err
	}
	deltas, images, err := recordTables(ctx, conn)
	if err != nil {
		return err
	}
	var names []string
	for _, d := range deltas {
		names = append(names, d.name)
	}
	// side goes last: it says whose the rest is.
	for _, name := range slices.Concat(names, images, baseTables) {
		if err := DropOurs(ctx, conn, run, "TABLE", name, onWait); err != nil {
			return err
		}
		failpoint.Hit("capture.dropped")
	}
	if _, err := conn.Exec(ctx, "DROP FUNCTION IF EXISTS pgrunbook.guard()"); err != nil {
		return fmt.Errorf("dropping pgrunbook.guard: %w", err)
	}
	return DropSchema(ctx, conn, run)
}

// DropOurs drops a table or sequence of ours, told by its comment. A monitoring query that reads it
// is named, and must not make us wait for ever.
func DropOurs(ctx context.Context, conn *pgx.Conn, run scope.Run, kind, name string, onWait OnWait) error {
	quoted := pg.Name(Schema, name)
	var oid uint32
	var ours bool
	err := conn.QueryRow(ctx, "SELECT coalesce(to_regclass($1)::oid, 0::oid), coalesce(obj_description(to_regclass($1), 'pg_class'), '') = $2", quoted, Remark(run)).Scan(&oid, &ours)
	if err != nil {
		return fmt.Errorf("looking at %s: %w", quoted, err)
	}
	if !ours {
		return nil
	}
	err = WithLock(ctx, conn, scope.Name{Schema: Schema, Name: name}, oid, pg.AccessExclusive, onWait, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "DROP "+kind+" "+quoted)
		return err
	})
	if err != nil {
		return fmt.Errorf("dropping %s: %w", quoted, err)
	}
	return nil
}

// DropSchema drops schema pgrunbook when this run made it and nothing is in it any more.
func DropSchema(ctx context.Context, conn *pgx.Conn, run scope.Run) error {
	var drop bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace n WHERE n.nspname = 'pgrunbook' AND obj_description(n.oid, 'pg_namespace') = $1
  AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid) AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid)
  AND NOT EXISTS (SELECT FROM pg_type t WHERE t.typnamespace = n.oid))`, Remark(run)).Scan(&drop)
	if err != nil {
		return fmt.Errorf("looking at schema pgrunbook: %w", err)
	}
	if !drop {
		return nil
	}
	if _, err := conn.Exec(ctx, "DROP SCHEMA pgrunbook"); err != nil { // RESTRICT: it refuses what appeared meanwhile
		return fmt.Errorf("dropping schema pgrunbook: %w", err)
	}
	return nil
}
