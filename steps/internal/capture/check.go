package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Rule says what a change of a captured table asks for.
type Rule string

// The rules. Whatever needs none of them is recorded by Check itself.
const (
	Carry  Rule = "carry"  // run SQL on the other side, InstallOn here, then Accept
	Recopy Rule = "recopy" // InstallOn here, Accept, then load the table again
	Leave  Rule = "leave"  // the table is gone: let go of it, or a person must act
	Stop   Rule = "stop"   // a person must act
)

// Change is one difference between a captured table as recorded and as it is.
type Change struct {
	ID     int32
	Table  scope.Name
	What   What
	Member scope.Name // the partition, where it is about one
	OID    uint32     // of a partition that was removed
	Column string
	Type   string // of ColumnAdded and ColumnType, with its collation
	Rule   Rule
	Text   string // a sentence
	Hint   string // what to type or change next
	// SQL is what makes the other side alike, of Carry, and of PartitionMoved where it lacks the partition in its place;
	// empty where that takes what the other side has by then.
	SQL string
	// Places are what SQL makes of partitions: whoever runs it looks first what the other side has there.
	Places []Place
	// NotNull says which way ColumnNull goes.
	NotNull bool
	// Missing is what rows from before an added column hold; nil is NULL.
	Missing *string
	// Unlike says that SQL does not make the rows alike: those from before an added column hold different values, or
	// row images were captured that lack a column or have one too many; or rows changed that no trigger saw.
	Unlike bool

	seen fingerprint
}

// Reloads reports whether a change takes a new load: rows changed that left no key, or old rows got
// values that no statement makes on the other side.
func (c Change) Reloads() bool { return c.Rule == Recopy || c.What == PartitionMoved || c.Unlike }

// Checked reports whether Check found the change in the catalog: Accept then compares with what it saw.
func (c Change) Checked() bool { return len(c.seen.Relations) > 0 }

// What happened to a table.
type What string

// Every kind of change that Check reports.
const (
	Dropped          What = "dropped"
	Renamed          What = "renamed"
	NotCaptured      What = "not_captured"
	Tampered         What = "tampered" // our triggers
	Rewritten        What = "rewritten"
	ColumnAdded      What = "column_added"
	ColumnDropped    What = "column_dropped"
	ColumnRenamed    What = "column_renamed"
	ColumnType       What = "column_type"
	ColumnNull       What = "column_null"
	ColumnDefault    What = "column_default"
	ColumnGenerated  What = "column_generated" // ceased to be
	ColumnIdentity   What = "column_identity"
	KeyChanged       What = "key_changed"
	PartitionAdded   What = "partition_added"
	PartitionRemoved What = "partition_removed"
	PartitionMoved   What = "partition_moved" // detached and attached again
	Inheritance      What = "inheritance"     // carried table by table, as the other side has it by then
	Subscribed       What = "subscribed"      // by a subscription that came later than its triggers
)

// Err makes an error of the changes whose rule is Stop or Leave, or nil.
func Err(changes []Change) error {
	for _, c := range changes {
		if c.Rule == Stop || c.Rule == Leave {
			return &engine.Error{Class: engine.ClassStale, Op: "following", Object: pg.Name(c.Table.Schema, c.Table.Name), Err: errors.New(c.Text), Hint: c.Hint}
		}
	}
	return nil
}

// Check compares captured tables with what was recorded of them and names what fires no trigger:
// DDL, attached and detached partitions, writes between DISABLE and ENABLE TRIGGER. It costs one
// query when nothing happened. Differences that change no row and no shape (VACUUM FULL, CLUSTER,
// SET LOGGED, SET STATISTICS, GRANT, an index, a foreign key) are recorded as seen and not
// reported. tables are compared only where they are captured; one that is not is NotCaptured.
//
// conn must see the present: a transaction above READ COMMITTED is refused, because the catalog
// is read by its snapshot. In a read-only session nothing is recorded.
func Check(ctx context.Context, conn *pgx.Conn, run scope.Run, tables []scope.Table) ([]Change, error) {
	ids, byID, err := checkable(ctx, conn, tables)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	var known []int32
	var readOnly bool
	if err := conn.QueryRow(ctx, "SELECT coalesce(array_agg(id), '{}'), current_setting('transaction_read_only')::bool FROM pgrunbook.captured WHERE id = ANY ($1)", ids).Scan(&known, &readOnly); err != nil {
		return nil, fmt.Errorf("reading what is captured: %w", err)
	}
	var changes []Change
	if len(known) < len(ids) {
		for _, id := range ids {
			if !slices.Contains(known, id) {
				changes = append(changes, newChange(byID[id], NotCaptured, Recopy, "it is not captured by run "+run.ID))
			}
		}
	}
	unseen, err := subscribed(ctx, conn, known, byID, readOnly)
	if err != nil {
		return nil, err
	}
	changes = append(changes, unseen...)
	diff, err := differing(ctx, conn, known)
	if err != nil || len(diff) == 0 {
		return changes, err
	}
	found, err := checkDetails(ctx, conn, diff, byID, readOnly)
	return append(changes, found...), err
}

func checkable(ctx context.Context, conn *pgx.Conn, tables []scope.Table) ([]int32, map[int32]scope.Table, error) {
	if conn.PgConn().TxStatus() != 'I' {
		var level string
		if err := conn.QueryRow(ctx, "SHOW transaction_isolation").Scan(&level); err != nil {
			return nil, nil, fmt.Errorf("reading the isolation level: %w", err)
		}
		if level != "read committed" {
			return nil, nil, fmt.Errorf("comparing the catalog in a %s transaction would compare the past", level)
		}
	}
	var ids []int32
	byID := map[int32]scope.Table{}
	for _, t := range tables {
		if t.Capture == scope.Statement || t.Capture == scope.Row {
			ids = append(ids, t.ID)
			byID[t.ID] = t
		}
	}
	return ids, byID, nil
}

func checkDetails(ctx context.Context, conn *pgx.Conn, ids []int32, byID map[int32]scope.Table, readOnly bool) ([]Change, error) {
	recs, err := records(ctx, conn, ids)
	if err != nil {
		return nil, err
	}
	tables, roots := make([]scope.Table, len(ids)), make([]uint32, len(ids))
	for i, id := range ids {
		if recs[id] == nil {
			return nil, fmt.Errorf("table %d is no longer captured", id)
		}
		tables[i], roots[i] = byID[id], recs[id].Rel
	}
	now, err := details(ctx, conn, tables, roots)
	if err != nil {
		return nil, err
	}
	var changes []Change
	for _, t := range tables {
		found := takenBack(t, recs[t.ID].print, now[t.ID])
		for i := range found {
			found[i].seen = now[t.ID]
		}
		changes = append(changes, found...)
		if len(found) == 0 && !readOnly {
			if err := put(ctx, conn, t, now[t.ID], recs[t.ID].raw); err != nil {
				return nil, err
			}
		}
	}
	return changes, nil
}

// Accept records that a table's changes were handled: what is now is what later checks compare
// with. seen are the changes that were handled; when the table changed further since Check saw
// them, it is an error, and Check must look again. Our own triggers may differ: InstallOn may have
// mended them in between. So may our function, where the rows are read again or it became one for
// row triggers. Call it before the rows are read again, never after.
func Accept(ctx context.Context, conn *pgx.Conn, t scope.Table, seen ...Change) error {
	rec, err := recorded(ctx, conn, t)
	if err != nil {
		return err
	}
	if rec == nil {
		rels, err := tree(ctx, conn, t.Name)
		if err != nil {
			return err
		}
		return store(ctx, conn, t, rels[0].OID)
	}
	prints, err := details(ctx, conn, []scope.Table{t}, []uint32{rec.Rel})
	if err != nil {
		return err
	}
	now := prints[t.ID]
	if len(now.Relations) == 0 {
		return fmt.Errorf("%s is gone", pg.Name(t.Schema, t.Name.Name))
	}
	renewed := slices.ContainsFunc(seen, func(c Change) bool { return c.ID == t.ID && (c.Reloads() || c.What == Inheritance) })
	for _, c := range seen {
		if c.ID != t.ID || len(c.seen.Relations) == 0 {
			continue
		}
		for _, further := range compare(t, c.seen, now) {
			if further.What != Tampered {
				return further.meanwhile()
			}
		}
		if !renewed && !c.seen.written(now) {
			return newChange(t, Tampered, Recopy, "our function or the table that it writes to was touched").meanwhile()
		}
	}
	if !rec.print.written(now) { // InstallOn made it anew, or somebody did it again: one that does something else is not taken for ours
		ours, err := wanted(ctx, conn, t, rec.Rel)
		if err != nil {
			return err
		}
		if !ours {
			return newChange(t, Tampered, Recopy, "our function was replaced").meanwhile()
		}
	}
	return put(ctx, conn, t, now, rec.raw)
}

func (c Change) meanwhile() error {
	return &engine.Error{Op: "following", Object: pg.Name(c.Table.Schema, c.Table.Name), Err: fmt.Errorf("it changed again meanwhile: %s", c.Text), Hint: "Run the same command again."}
}

// FileNodes gives the file node of every member of a table that has rows, by quoted and qualified
// name, at this very moment: also inside a transaction with an old snapshot, since
// pg_relation_filenode looks at the present. A rewrite makes a snapshot read empty, so whoever
// reads rows compares them before and after. A table that was dropped has none.
func FileNodes(ctx context.Context, conn *pgx.Conn, t scope.Table) (map[string]int64, error) {
	rels, err := tree(ctx, conn, t.Name)
	if err != nil && !errors.Is(err, errNoTable) {
		return nil, err
	}
	var oids []uint32
	var names []string
	for _, r := range rels {
		if r.Kind == "r" {
			oids, names = append(oids, r.OID), append(names, pg.Name(r.Schema, r.Name.Name))
		}
	}
	rows, err := conn.Query(ctx, "SELECT n, coalesce(pg_relation_filenode(o)::oid::int8, 0) FROM unnest($1::oid[], $2::text[]) AS r (o, n)", oids, names)
	if err != nil {
		return nil, fmt.Errorf("reading file nodes of %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	nodes := map[string]int64{}
	var name string
	var node int64
	_, err = pgx.ForEachRow(rows, []any{&name, &node}, func() error { nodes[name] = node; return nil })
	if err != nil {
		return nil, fmt.Errorf("reading file nodes of %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	return nodes, nil
}

// What to do about a change that no rule carries.
const (
	beginAgain  = "Or begin again with what is now: pgrunbook abort --drop-target, then pgrunbook plan and apply."
	undoOrBegin = "Undo the change on this side, and run the same command again. " + beginAgain
)

func newChange(t scope.Table, what What, rule Rule, text string) Change {
	c := Change{ID: t.ID, Table: t.Name, What: what, Rule: rule, Text: pg.Name(t.Schema, t.Name.Name) + ": " + text}
	switch {
	case rule == Stop && strings.HasPrefix(string(what), "column"):
		c.Hint = undoOrBegin
	case rule == Leave:
		c.Hint = `Set schema { on_ddl = "carry" } in the runbook and run the same command again: it is dropped on the target too, and the run goes on without it. ` + beginAgain
	case rule == Stop:
		c.Hint = "Undo the change, and run the same command again. " + beginAgain
	}
	return c
}
