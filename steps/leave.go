package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// ofPlan are the tables that the accepted plan holds, in its order, those that left since included:
// what a step that is done was fingerprinted by.
func ofPlan(s *scope.Scope) []scope.Table {
	list := slices.DeleteFunc(slices.Concat(s.Tables, s.Left), func(t scope.Table) bool { return t.Joined })
	slices.SortFunc(list, func(a, b scope.Table) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// left gives the tables of the run that were dropped on the source. One that was made again under the
// same name is among them: it is another table, whose rows are others.
func left(ctx context.Context, env *Env, source *pgx.Conn, changes []capture.Change) ([]scope.Table, error) {
	var oids []uint32
	for _, t := range env.Scope.Tables {
		oids = append(oids, t.OID)
	}
	rows, err := source.Query(ctx, "SELECT o FROM unnest($1::oid[]) AS u (o) WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = o)", oids)
	if err != nil {
		return nil, fmt.Errorf("looking for tables that were dropped: %w", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("looking for tables that were dropped: %w", err)
	}
	var list []scope.Table
	for _, t := range env.Scope.Tables {
		followed := t.Data == scope.Live && t.Capture != scope.NoCapture
		gone := false
		for _, c := range changes {
			gone = gone || c.ID == t.ID && c.What == capture.Dropped
			followed = followed && (c.ID != t.ID || c.What != capture.NotCaptured) // of what was never captured only the scope knows which it was
		}
		if gone || !followed && slices.Contains(missing, t.OID) {
			list = append(list, t)
		}
	}
	return list, nil
}

// leave drops on the target what the source has dropped, and lets go of it. Whatever comes again
// under the same name joins the run as a new table.
func leave(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	if env.Runbook.Schema.OnDDL != "carry" {
		return nil // named by the checks
	}
	changes, err := capture.Check(ctx, sides.source, env.Run, captured(env))
	if err != nil {
		return err
	}
	if err := dropPartitions(ctx, env, cp, sides, changes, true); err != nil { // before others take their place
		return err
	}
	tables, err := left(ctx, env, sides.source, changes)
	if err != nil || len(tables) == 0 {
		return err
	}
	var names []scope.Name
	for _, t := range tables {
		names = append(names, t.Name)
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(t.Schema, t.Name.Name), Message: pg.Name(t.Schema, t.Name.Name) + " was dropped on the source: dropped on the target too, and no longer part of the run"})
	}
	if err := looseChildren(ctx, env, cp, sides, names); err != nil {
		return err
	}
	return letGo(ctx, env, cp, sides, tables, names)
}

// letGo takes tables out of the run, and some of them off the target.
func letGo(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, tables []scope.Table, drop []scope.Name) error {
	back, err := wayBack(ctx, env, sides.target)
	if err != nil {
		return err
	}
	if len(drop) > 0 {
		if err := dropCarried(ctx, env, cp, sides, "DROP TABLE IF EXISTS "+quotedNames(drop)+" CASCADE", drop); err != nil {
			return err
		}
	}
	failpoint.Hit("leave.dropped")
	var ids []int32
	for _, t := range tables {
		if err := forget(ctx, env, cp, sides, t, back, "remove capture of a table that leaves the run"); err != nil {
			return err
		}
		ids = append(ids, t.ID)
		env.Scope.LastID = max(env.Scope.LastID, t.ID)
		env.Scope.Tables = slices.DeleteFunc(env.Scope.Tables, func(o scope.Table) bool { return o.ID == t.ID })
		if !t.Joined {
			env.Scope.Left = append(env.Scope.Left, t)
		}
	}
	failpoint.Hit("leave.forgotten")
	return recordScope(ctx, env, ids...) // with the chunks of a load that was under way
}

// forget takes the capture of a table that leaves the run off the source, and off the target where the way back is
// captured (back).
func forget(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, t scope.Table, back bool, what string) error {
	if t.Data != scope.Live {
		return nil
	}
	if err := capture.Forget(ctx, sides.source, env.Run, t, waiting(cp, engine.Source, what)); err != nil || !back {
		return err
	}
	return capture.Forget(ctx, sides.target, env.Run, t, waiting(cp, engine.Target, what))
}

func quoted(names []scope.Name) []string {
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = pg.Name(n.Schema, n.Name)
	}
	return list
}

func quotedNames(names []scope.Name) string { return strings.Join(quoted(names), ", ") }

// dropCarried drops on the target what the source has dropped, with what depends on it there: on the
// source that went too, or was made anew since. What this run did not bring is a person's: with such
// an object in the way nothing is dropped; of a column (columns are those that changed on the source), one
// on its own table too. What went is recorded with it, so that a definition that the source has is made again.
func dropCarried(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, sql string, names []scope.Name, columns ...string) error {
	if err := sides.durable(ctx); err != nil { // the drop on the source
		return err
	}
	known, err := restoredDefinitions(ctx, env)
	if err != nil {
		return err
	}
	cursor, err := carriedSoFar(ctx, env, cp)
	if err != nil {
		return err
	}
	if known == nil {
		known = map[string]string{}
	}
	maps.Copy(known, cursor.Handled)
	e := pg.Etiquette{Object: quotedNames(names), Mode: pg.AccessExclusive, Report: waiting(cp, engine.Target, "carry a change to the target")}
	below := &heirColumns{}
	if len(columns) > 0 {
		if below, err = columnsBelow(ctx, sides, names[0]); err != nil {
			return err
		}
	}
	if e.Relations, err = treesOf(ctx, sides.target, slices.Concat(below.heirs, names)); err != nil {
		return err
	}
	err = pg.WithLock(ctx, sides.target, e, func(ctx context.Context, tx pgx.Tx) error {
		before, err := dump.Inventory(ctx, tx.Conn(), nil)
		if err != nil {
			return err
		}
		had, err := columnTexts(ctx, tx.Conn(), quotedNames(names[:1]))
		if err != nil {
			return err
		}
		within, err := identitySequences(ctx, tx, e.Relations)
		if err != nil {
			return err
		}
		if err := dropUnpublished(ctx, tx, sql); err != nil {
			return err
		}
		if len(columns) > 0 {
			if err := cmp.Or(onlyColumns(ctx, tx, names[0], columns, had), below.alike(ctx, tx)); err != nil {
				return err
			}
		}
		after, err := dump.Inventory(ctx, tx.Conn(), nil)
		if err != nil {
			return err
		}
		for id, i := range before {
			now, there := after[id]
			own := ownWords(i.Kind) || i.Kind == dump.ItemComment
			of := slices.Contains(e.Relations, i.Rel) && (len(columns) == 0 || own || i.Kind == dump.ItemTable) || slices.Contains(within, i.OID) // the table itself: see onlyColumns
			switch {
			case !there && staysInRun(env, i, names):
				return fmt.Errorf("%s would go with it, and is still on the source", id)
			case there && (of || now.Def == i.Def):
				continue
			case there:
				return fmt.Errorf("%s would change with it", id)
			case !of && !own && (known[id] == "" || known[id] == gone):
				return fmt.Errorf("%s depends on it, and is none that this run brought", id)
			}
			cursor.Handled[id] = gone
		}
		return cp.Save(ctx, tx, cursor)
	})
	var blocked *pg.LockError
	if errors.As(err, &blocked) {
		return sided(engine.Target, err)
	}
	if err != nil {
		return &engine.Error{
			Op: "carrying a change to the target", Object: quotedNames(names), Err: fmt.Errorf("%s: %w", sql, err),
			Hint: "Drop what depends on it on the target by hand, or make the same change there, then run the same command again.",
		}
	}
	return nil
}

// identitySequences gives those of the identity columns of relations: nobody else's can depend on these.
func identitySequences(ctx context.Context, tx pgx.Tx, relations []uint32) ([]uint32, error) {
	rows, err := tx.Query(ctx, `SELECT s.oid FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
 WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY ($1::oid[]) AND d.deptype = 'i'`, relations)
	if err != nil {
		return nil, fmt.Errorf("looking for the sequences of identities: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("looking for the sequences of identities: %w", err)
	}
	return list, nil
}

// publishedOn gives what publications of the target list by name: they are no definitions of the source, so that no
// inventory has them, and a table takes its place in them along.
func publishedOn(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	rows, err := conn.Query(ctx, "SELECT format('publication %I lists %s', p.pubname, r.prrelid::regclass) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid ORDER BY 1")
	if err != nil {
		return nil, fmt.Errorf("reading the target's publications: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("reading the target's publications: %w", err)
	}
	return list, nil
}

// dropUnpublished drops what no publication of the target lists by name.
func dropUnpublished(ctx context.Context, tx pgx.Tx, sql string) error {
	was, err := publishedOn(ctx, tx.Conn())
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, sql); err != nil {
		return err
	}
	now, err := publishedOn(ctx, tx.Conn())
	if err != nil {
		return err
	}
	for _, one := range was {
		if !slices.Contains(now, one) {
			return fmt.Errorf("%s, and is none that this run brought", one)
		}
	}
	return nil
}

// onlyColumns refuses to drop a column where another one would go or change with it that is the same as ever on the
// source: one that somebody generates from it on the target, or whose default takes from its sequence there.
func onlyColumns(ctx context.Context, tx pgx.Tx, table scope.Name, columns []string, had map[string]columnText) error {
	name := pg.Name(table.Schema, table.Name)
	has, err := columnTexts(ctx, tx.Conn(), name)
	if err != nil {
		return err
	}
	for _, c := range slices.SortedFunc(maps.Values(had), byNumber) {
		if has[c.name] != c && !slices.Contains(columns, c.name) {
			return fmt.Errorf("column %s of %s would go or change with it, and did not on the source", c.quoted(), name)
		}
	}
	return nil
}

// staysInRun reports whether a definition is a table of the run that is none of those dropped: one that inherited
// from such a table, as a rule, and does no more on the source.
func staysInRun(env *Env, i dump.Item, dropped []scope.Name) bool {
	return i.Kind == dump.ItemTable && slices.ContainsFunc(env.Scope.Tables, func(t scope.Table) bool {
		return pg.Name(t.Schema, t.Name.Name) == i.Name && !slices.Contains(dropped, t.Name)
	})
}

const treesSQL = `
WITH RECURSIVE tree (oid) AS (
  SELECT to_regclass(name)::oid FROM unnest($1::text[]) name WHERE to_regclass(name) IS NOT NULL
  UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relispartition)
SELECT oid FROM tree`

// treesOf gives tables that are there, with their partitions.
func treesOf(ctx context.Context, conn *pgx.Conn, names []scope.Name) ([]uint32, error) {
	rows, err := conn.Query(ctx, treesSQL, quoted(names))
	if err != nil {
		return nil, fmt.Errorf("looking at %s on the target: %w", quotedNames(names), err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("looking at %s on the target: %w", quotedNames(names), err)
	}
	return list, nil
}

// leaving reports that a captured table was dropped and may leave the run; catch_up lets it go.
func leaving(env *Env, changes []capture.Change) error {
	if env.Runbook.Schema.OnDDL != "carry" {
		return nil
	}
	if i := slices.IndexFunc(changes, func(c capture.Change) bool { return c.Rule == capture.Leave }); i >= 0 {
		return &errRedefined{pg.Name(changes[i].Table.Schema, changes[i].Table.Name) + " was dropped"}
	}
	return nil
}

// forgotten is leaving for a table that a process has let go of, and died before that was recorded: to capture it
// again would need the table, or take the one that has its name for it.
func forgotten(ctx context.Context, env *Env, source *pgx.Conn, t scope.Table, changes []capture.Change) error {
	if env.Runbook.Schema.OnDDL != "carry" || !slices.ContainsFunc(changes, func(c capture.Change) bool { return c.What == capture.NotCaptured }) {
		return nil
	}
	var there bool
	if err := source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1)", t.OID).Scan(&there); err != nil {
		return fmt.Errorf("looking for %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	if !there {
		return &errRedefined{pg.Name(t.Schema, t.Name.Name) + " was dropped"}
	}
	return nil
}
