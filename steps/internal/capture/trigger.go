package capture

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// relation is one member of a captured tree, the root first.
type relation struct {
	scope.Name
	OID       uint32
	Kind      string // relkind
	Root      bool
	Inherits  bool   // legacy inheritance: parent or child
	Detaching string // the parent that a DETACH CONCURRENTLY, not ended yet, takes it off
}

// treeSQL finds a table and, below a partitioned one, every member.
const treeSQL = `
WITH RECURSIVE tree (oid, level) AS (
  SELECT c.oid, 0 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2
  UNION ALL
  SELECT i.inhrelid, t.level + 1 FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p' JOIN pg_inherits i ON i.inhparent = t.oid)
SELECT n.nspname, c.relname, c.oid, c.relkind::text, t.level = 0,
       NOT c.relispartition AND c.relkind <> 'p' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid OR i.inhrelid = c.oid),
       coalesce((SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid AND (to_jsonb(i) ->> 'inhdetachpending')::bool), '')
  FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY t.level, n.nspname, c.relname`

var errNoTable = errors.New("there is no such table")

func tree(ctx context.Context, conn *pgx.Conn, t scope.Name) ([]relation, error) {
	rows, err := conn.Query(ctx, treeSQL, t.Schema, t.Name)
	if err != nil {
		return nil, fmt.Errorf("reading the tree of %s: %w", pg.Name(t.Schema, t.Name), err)
	}
	rels, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (relation, error) {
		var r relation
		err := row.Scan(&r.Schema, &r.Name.Name, &r.OID, &r.Kind, &r.Root, &r.Inherits, &r.Detaching)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the tree of %s: %w", pg.Name(t.Schema, t.Name), err)
	}
	if len(rels) == 0 {
		return nil, &engine.Error{Class: engine.ClassStale, Op: "capturing", Object: pg.Name(t.Schema, t.Name), Err: errNoTable, Hint: "Run plan again."}
	}
	return rels, nil
}

// Bits of pg_trigger.tgtype (src/include/catalog/pg_trigger.h).
const (
	typeRow, typeBefore                              = 1, 2
	typeInsert, typeDelete, typeUpdate, typeTruncate = 4, 8, 16, 32
)

// trigger is one that must stand on a relation.
type trigger struct {
	name     string
	event    string
	bits     int16
	row      bool
	old, new bool // transition tables
}

const triggerPrefix = "pgrunbook_capture_"

// triggersFor says which triggers a member of a tree needs. Statement triggers fire only for the
// relation that a statement names, so root and members all have them; row triggers fire on the
// leaf that holds the row, whatever the statement names. A foreign leaf has rows that are not ours.
func triggersFor(c scope.Capture, kind string) []trigger {
	if kind == "f" {
		return nil
	}
	list := []trigger{{name: "trunc", event: "TRUNCATE", bits: typeTruncate}}
	if failpoint.Mutant("capture.no_truncation") {
		list = nil
	}
	if c == scope.Row {
		if kind == "p" {
			return list
		}
		return append(list, trigger{name: "ins", event: "INSERT", bits: typeRow | typeInsert, row: true},
			trigger{name: "upd", event: "UPDATE", bits: typeRow | typeUpdate, row: true},
			trigger{name: "del", event: "DELETE", bits: typeRow | typeDelete, row: true})
	}
	return append(list, trigger{name: "ins", event: "INSERT", bits: typeInsert, new: true},
		trigger{name: "upd", event: "UPDATE", bits: typeUpdate, old: true, new: true},
		trigger{name: "del", event: "DELETE", bits: typeDelete, old: true})
}

// MarkClause is the WHEN clause of all our triggers: sessions of this run pass.
func MarkClause(run scope.Run) string {
	return "WHEN (pg_catalog.current_setting('pgrunbook.mark', true) IS DISTINCT FROM " + pg.Literal(run.Mark) + ")"
}

// sql is one CREATE TRIGGER. EXECUTE PROCEDURE is what 10 knows and 18 still takes.
func (g trigger) sql(run scope.Run, t scope.Table, rel scope.Name) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TRIGGER %s AFTER %s ON %s", triggerPrefix+g.name, g.event, pg.Name(rel.Schema, rel.Name))
	if g.old || g.new {
		b.WriteString(" REFERENCING")
		if g.old {
			b.WriteString(" OLD TABLE AS " + oldRows)
		}
		if g.new {
			b.WriteString(" NEW TABLE AS " + newRows)
		}
	}
	each := "STATEMENT"
	if g.row {
		each = "ROW"
	}
	fmt.Fprintf(&b, " FOR EACH %s %s EXECUTE PROCEDURE %s()", each, MarkClause(run), FunctionName(t.ID))
	return b.String()
}

// always is tgenabled of every capture trigger: writers in the replica role must leave a trace too.
func always() string {
	if failpoint.Mutant("capture.origin_only") {
		return "O"
	}
	return "A"
}

func enableSQL(rel scope.Name, name string) string {
	if always() == "O" {
		return fmt.Sprintf("ALTER TABLE ONLY %s ENABLE TRIGGER %s", pg.Name(rel.Schema, rel.Name), pgx.Identifier{name}.Sanitize())
	}
	return fmt.Sprintf("ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %s", pg.Name(rel.Schema, rel.Name), pgx.Identifier{name}.Sanitize())
}

// found is a capture trigger as the catalog has it.
type found struct {
	name    string
	right   bool // function, events, transition tables and mark are what they must be
	enabled string
	want    bool
	theirs  bool // its function is none of ours
}

const foundSQL = `
SELECT t.tgname, t.tgenabled::text, t.tgtype, t.tgfoid = coalesce(to_regprocedure($2)::oid, 0::oid),
       coalesce(t.tgoldtable, ''), coalesce(t.tgnewtable, ''), strpos(pg_get_triggerdef(t.oid), $3) > 0,
       NOT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = t.tgfoid AND n.nspname = 'pgrunbook')
  FROM pg_trigger t WHERE t.tgrelid = $1 AND t.tgname LIKE 'pgrunbook\_capture\_%' AND NOT t.tgisinternal`

// inspect compares a relation's capture triggers with what they must be.
func inspect(ctx context.Context, conn *pgx.Conn, run scope.Run, t scope.Table, r relation) (have map[string]found, ok bool, err error) {
	want := map[string]trigger{}
	for _, g := range triggersFor(t.Capture, r.Kind) {
		want[triggerPrefix+g.name] = g
	}
	rows, err := conn.Query(ctx, foundSQL, r.OID, FunctionName(t.ID)+"()", pg.Literal(run.Mark))
	if err != nil {
		return nil, false, fmt.Errorf("reading triggers of %s: %w", pg.Name(r.Schema, r.Name.Name), err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (found, error) {
		var f found
		var bits int16
		var function, marked bool
		var oldTable, newTable string
		if err := row.Scan(&f.name, &f.enabled, &bits, &function, &oldTable, &newTable, &marked, &f.theirs); err != nil {
			return f, err
		}
		g, ok := want[f.name]
		f.want = ok
		f.right = ok && function && marked && bits == g.bits && (oldTable != "") == g.old && (newTable != "") == g.new
		return f, nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("reading triggers of %s: %w", pg.Name(r.Schema, r.Name.Name), err)
	}
	have, ok = map[string]found{}, len(list) == len(want)
	for _, f := range list {
		have[f.name] = f
		ok = ok && f.right && f.enabled == always()
	}
	return have, ok, nil
}
