package gate

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Trigger is the gate's name on every table: it sorts before an application's triggers, so that
// nothing of a refused statement has run.
const Trigger = "!pgrunbook_gate"

const (
	function = "pgrunbook.gate"
	flagOpen = 0
	// The flip closes with 1 (freeze.Attempt, and whoever does it by hand).
	notYet = 2 // closed, and never open before
)

// notOpenYet is what a side says that never took writes: nothing has moved there.
const notOpenYet = "this database is being migrated and is not open for writes yet"

// functionSQL is the gate. It takes the key shared for the rest of the transaction, then reads the
// sequence, which is outside MVCC: a transaction with an old snapshot sees a closed gate too. The
// counter is a sequence because a row would be rolled back by the RAISE. Anything but 0 is closed.
// With the key held shared the flag is the same when it is read again for the words.
// lock_timeout = 0: an application's own must not end a wait of a few hundred milliseconds.
const functionSQL = `CREATE OR REPLACE FUNCTION pgrunbook.gate() RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER SET lock_timeout = 0 AS $pgrunbook$
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock_shared(%d::pg_catalog.int8);
  IF (SELECT g.last_value OPERATOR(pg_catalog.<>) 0 FROM pgrunbook.gate_flag AS g) THEN
    PERFORM pg_catalog.nextval('pgrunbook.refused'::pg_catalog.regclass);
    RAISE EXCEPTION USING ERRCODE = %s, MESSAGE = CASE WHEN (SELECT g.last_value OPERATOR(pg_catalog.=) 2 FROM pgrunbook.gate_flag AS g) THEN %s ELSE %s END%s;
  END IF;
  RETURN NULL;
END $pgrunbook$`

const noopSQL = `CREATE OR REPLACE FUNCTION pgrunbook.gate() RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER AS $pgrunbook$ BEGIN RETURN NULL; END $pgrunbook$`

// functionFor writes the gate's function for a run.
func functionFor(run scope.Run) string {
	literal := func(s string) string { return pg.Literal(strings.ReplaceAll(s, "$pgrunbook$", "pgrunbook")) }
	detail := ""
	if run.Elsewhere != "" {
		detail = ", DETAIL = " + literal("Writes go to "+run.Elsewhere+".")
	}
	return fmt.Sprintf(functionSQL, run.GateKey, literal(run.ClosedError), literal(notOpenYet), literal(run.Message), detail)
}

func triggerSQL(run scope.Run, rel scope.Name) []string {
	name, trigger := pg.Name(rel.Schema, rel.Name), pgx.Identifier{Trigger}.Sanitize()
	return []string{
		fmt.Sprintf("CREATE TRIGGER %s BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s FOR EACH STATEMENT %s EXECUTE PROCEDURE %s()", trigger, name, capture.MarkClause(run), function),
		fmt.Sprintf("ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER %s", name, trigger),
	}
}

// Statements are what Install runs once and for one table of the scope, for plans.
func Statements(run scope.Run, t scope.Table) []string {
	list := triggerSQL(run, t.Name)
	for _, m := range t.Members {
		if !m.Foreign {
			list = append(list, triggerSQL(run, m.Name)...)
		}
	}
	return list
}

// BaseStatements are what Install runs once on a side, for plans.
func BaseStatements(run scope.Run) []string {
	return []string{"CREATE SEQUENCE pgrunbook.gate_flag MINVALUE 0 START 0", "CREATE SEQUENCE pgrunbook.refused", functionFor(run)}
}

// Install gates the tables on the side behind srv, open as it is made: sequences and function
// (with capture.Prepare before them), then the trigger on each table and member, one per
// transaction. It may be called again and mends what is missing, wrong or not ENABLE ALWAYS.
//
// On a new target, with nobody in it, call CloseNow afterwards in the same step: from then on only
// marked sessions write there.
func Install(ctx context.Context, srv *pg.Server, run scope.Run, tables []scope.Table, onWait capture.OnWait) error {
	conn, err := srv.Connect(ctx, pg.Use{Name: "gate"})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return InstallOn(ctx, conn, run, tables, onWait)
}

// InstallOn is Install over a connection.
func InstallOn(ctx context.Context, conn *pgx.Conn, run scope.Run, tables []scope.Table, onWait capture.OnWait) error {
	if err := Prepare(ctx, conn, run); err != nil {
		return err
	}
	return Arm(ctx, conn, run, tables, onWait)
}

// Arm puts the trigger on tables, after Prepare.
func Arm(ctx context.Context, conn *pgx.Conn, run scope.Run, tables []scope.Table, onWait capture.OnWait) error {
	failpoint.Hit("gate.prepared")
	missing, err := ungated(ctx, conn, run, tables)
	if err != nil {
		return err
	}
	for _, r := range missing {
		if err := arm(ctx, conn, run, r, onWait); err != nil {
			return err
		}
		failpoint.Hit("gate.armed")
	}
	return nil
}

// Prepare makes the gate's sequences and function, open.
func Prepare(ctx context.Context, conn *pgx.Conn, run scope.Run) error {
	if len(run.ClosedError) != 5 || run.Message == "" {
		return fmt.Errorf("the run names no SQLSTATE (%q) and message for a closed gate", run.ClosedError)
	}
	if err := capture.Prepare(ctx, conn, run); err != nil {
		return err
	}
	list := []string{
		"CREATE SEQUENCE IF NOT EXISTS pgrunbook.gate_flag MINVALUE 0 START 0",
		"CREATE SEQUENCE IF NOT EXISTS pgrunbook.refused",
		functionFor(run),
		"REVOKE ALL ON FUNCTION pgrunbook.gate() FROM PUBLIC",
		"COMMENT ON FUNCTION pgrunbook.gate() IS " + pg.Literal(capture.Remark(run)),
		"COMMENT ON SEQUENCE pgrunbook.gate_flag IS " + pg.Literal(capture.Remark(run)),
		"COMMENT ON SEQUENCE pgrunbook.refused IS " + pg.Literal(capture.Remark(run)),
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, sql := range list {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("making the gate: %w", err)
	}
	return nil
}

// gap is one relation without a right gate.
type gap struct {
	scope.Name
	OID   uint32
	Wrong bool // a trigger of the gate's name is there and is another one: it must go first
	Off   bool // the gate's trigger is there and not ENABLE ALWAYS
	Gone  bool // no such relation
	Their bool // the trigger of the gate's name is somebody else's
}

// gapsSQL finds tables and members without the gate's trigger as it must be: BEFORE statement (bit
// 2), INSERT, DELETE, UPDATE, TRUNCATE (4, 8, 16, 32), our function, the run's mark, ENABLE ALWAYS.
const gapsSQL = `
WITH RECURSIVE named AS (SELECT * FROM unnest($1::text[], $2::text[]) AS x (schema_name, table_name)),
tree (oid) AS (
  SELECT c.oid FROM named x JOIN pg_namespace n ON n.nspname = x.schema_name JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.table_name
  UNION
  SELECT i.inhrelid FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p' JOIN pg_inherits i ON i.inhparent = t.oid)
SELECT n.nspname, c.relname, c.oid, g.oid IS NOT NULL AND NOT g.fits, g.oid IS NOT NULL AND g.fits, false, coalesce(g.theirs, false)
  FROM tree t JOIN pg_class c ON c.oid = t.oid AND c.relkind IN ('r', 'p') JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN (SELECT g.oid, g.tgrelid, g.tgenabled, g.tgtype = 62 AND g.tgfoid = coalesce(to_regprocedure('pgrunbook.gate()')::oid, 0::oid)
                    AND strpos(pg_get_triggerdef(g.oid), $3) > 0 AS fits,
                    NOT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = g.tgfoid AND n.nspname = 'pgrunbook') AS theirs
               FROM pg_trigger g WHERE g.tgname = '!pgrunbook_gate') g ON g.tgrelid = c.oid
 WHERE g.oid IS NULL OR NOT g.fits OR g.tgenabled <> 'A'
UNION ALL
SELECT x.schema_name, x.table_name, 0::oid, false, false, true, false FROM named x
 WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = x.schema_name AND c.relname = x.table_name)
 ORDER BY 1, 2`

// ungated looks again where it was in DDL's way: pg_get_triggerdef opens the table.
func ungated(ctx context.Context, conn *pgx.Conn, run scope.Run, tables []scope.Table) (gaps []gap, err error) {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name.Name
	}
	err = pg.Retry(ctx, "looking for tables without a gate", func(ctx context.Context) error {
		rows, err := conn.Query(ctx, gapsSQL, schemas, names, pg.Literal(run.Mark))
		if err != nil {
			return err
		}
		gaps, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (gap, error) {
			var g gap
			err := row.Scan(&g.Schema, &g.Name.Name, &g.OID, &g.Wrong, &g.Off, &g.Gone, &g.Their)
			return g, err
		})
		return err
	})
	return gaps, err
}

func arm(ctx context.Context, conn *pgx.Conn, run scope.Run, g gap, onWait capture.OnWait) error {
	name := pg.Name(g.Schema, g.Name.Name)
	if g.Gone {
		return &engine.Error{Class: engine.ClassStale, Op: "arming the gate on", Object: name, Err: errors.New("there is no such table"), Hint: "Run plan again."}
	}
	if g.Their {
		return capture.Theirs(g.Name, Trigger)
	}
	statements, mode := triggerSQL(run, g.Name), pg.ShareRowExclusive
	if g.Wrong {
		mode = pg.AccessExclusive
		statements = append([]string{"DROP TRIGGER " + pgx.Identifier{Trigger}.Sanitize() + " ON " + name}, statements...)
	} else if g.Off {
		statements = statements[1:]
	}
	err := capture.WithLock(ctx, conn, g.Name, g.OID, mode, onWait, func(ctx context.Context, tx pgx.Tx) error {
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("arming the gate on %s: %w", name, err)
	}
	return nil
}

// armed looks whether the gate's function is one that holds anybody: a clean-up that did not come to
// its end leaves one that lets everybody pass.
func armed(ctx context.Context, conn *pgx.Conn, run scope.Run) error {
	var holds bool
	err := conn.QueryRow(ctx, "SELECT coalesce((SELECT position($1 IN prosrc) > 0 FROM pg_proc WHERE oid = to_regprocedure('pgrunbook.gate()')), false)", strconv.FormatInt(run.GateKey, 10)).Scan(&holds)
	if err != nil {
		return fmt.Errorf("looking at the gate: %w", err)
	}
	if !holds {
		return &engine.Error{Op: "checking the gate", Err: fmt.Errorf("its function lets everybody pass: the tables in scope %w", ErrUngated), Hint: "Run the same command again: it arms them."}
	}
	return nil
}

// ErrUngated is what Verify finds; its other errors say that it could not look.
var ErrUngated = errors.New("are not gated, or not always")

// Verify refuses unless every table and member is gated: a freeze with one ungated table would
// lose what is written there.
func Verify(ctx context.Context, conn *pgx.Conn, run scope.Run, tables []scope.Table) error {
	if err := armed(ctx, conn, run); err != nil {
		return err
	}
	gaps, err := ungated(ctx, conn, run, tables)
	if err != nil || len(gaps) == 0 {
		return err
	}
	first := pg.Name(gaps[0].Schema, gaps[0].Name.Name)
	return &engine.Error{
		Op: "checking the gate of", Object: first, Err: fmt.Errorf("%d of the tables in scope %w", len(gaps), ErrUngated),
		Hint: "Run the same command again: it arms them. If that repeats, find out who alters triggers (ENABLE TRIGGER ALL does).",
	}
}
