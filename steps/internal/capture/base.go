package capture

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Schema is where every object of ours lives, on both sides.
const Schema = "pgrunbook"

// Remark is the comment that ties an object to a run.
func Remark(run scope.Run) string { return "pgrunbook run " + run.ID }

// claimSQL reads what schema pgrunbook is: absent, empty, a journal's, or a run's.
const claimSQL = `
SELECT n.oid IS NOT NULL,
       coalesce(obj_description(n.oid, 'pg_namespace'), ''),
       coalesce(obj_description(to_regclass('pgrunbook.side'), 'pg_class'), ''),
       coalesce(obj_description(to_regclass('pgrunbook.meta'), 'pg_class'), '') = 'pgrunbook journal',
       NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid)
         AND NOT EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid)
  FROM (SELECT) one LEFT JOIN pg_namespace n ON n.nspname = 'pgrunbook'`

// Owned reports whether schema pgrunbook is there and may be used by this run. It is an
// engine.Error of ClassPreflight when it holds what another run or somebody else made.
func Owned(ctx context.Context, conn *pgx.Conn, run scope.Run) (there bool, err error) {
	var schemaRemark, sideRemark string
	var journal, empty bool
	if err := conn.QueryRow(ctx, claimSQL).Scan(&there, &schemaRemark, &sideRemark, &journal, &empty); err != nil {
		return false, fmt.Errorf("looking at schema pgrunbook: %w", err)
	}
	for _, remark := range []string{sideRemark, schemaRemark} {
		if remark == Remark(run) {
			return there, nil
		}
		if remark != "" && (remark == sideRemark || !journal) {
			return there, &engine.Error{
				Class: engine.ClassPreflight, Op: "using schema", Object: Schema,
				Err:  fmt.Errorf("its comment says %q, this is run %s", remark, run.ID),
				Hint: "Finish or abort that run first. What a finished run left behind goes with: BEGIN READ WRITE; DROP SCHEMA pgrunbook CASCADE; COMMIT",
			}
		}
	}
	if there && !journal && !empty {
		return there, &engine.Error{
			Class: engine.ClassPreflight, Op: "using schema", Object: Schema,
			Err:  errors.New("it holds objects that this tool did not make"),
			Hint: "Rename or remove that schema.",
		}
	}
	return there, nil
}

// baseSQL makes the objects that a side has once. The sentinel gets its row only when it is made:
// a crash empties it, and that must stay visible. The last columns of side are what package gate keeps of a flip.
// A watermark's timeline is that of the server whose transactions its snapshot knows; NULL is unknown.
const baseSQL = `
CREATE TABLE pgrunbook.side (
  run text PRIMARY KEY, mark text NOT NULL, gate_key bigint NOT NULL, created timestamptz NOT NULL DEFAULT pg_catalog.now(),
  closed timestamptz, note jsonb, given_up timestamptz);
CREATE TABLE pgrunbook.captured (
  id int PRIMARY KEY, schema_name text NOT NULL, table_name text NOT NULL, rel oid NOT NULL, mode text NOT NULL, shape text NOT NULL,
  fingerprint jsonb NOT NULL, members oid[] NOT NULL, sums bigint[] NOT NULL, installed timestamptz NOT NULL DEFAULT pg_catalog.now());
CREATE TABLE pgrunbook.truncated (
  rel int NOT NULL, member text NOT NULL, %s, n bigserial);
CREATE TABLE pgrunbook.heartbeat (one bool PRIMARY KEY DEFAULT true CHECK (one), at timestamptz NOT NULL DEFAULT pg_catalog.now());
INSERT INTO pgrunbook.heartbeat DEFAULT VALUES;
CREATE UNLOGGED TABLE pgrunbook.sentinel (one bool PRIMARY KEY DEFAULT true CHECK (one));
INSERT INTO pgrunbook.sentinel DEFAULT VALUES;
CREATE TABLE pgrunbook.watermark (from_side text PRIMARY KEY, pass uuid NOT NULL, epoch bigint NOT NULL, snapshot text, at timestamptz NOT NULL DEFAULT pg_catalog.now(), timeline bigint);`

// baseTables are what baseSQL makes.
var baseTables = []string{"captured", "truncated", "heartbeat", "sentinel", "watermark", "side"}

// guardSQL makes what refuses to empty a table of captured changes: nothing could tell afterwards
// which rows have to be read again.
const guardSQL = `
CREATE FUNCTION pgrunbook.guard() RETURNS pg_catalog.trigger LANGUAGE plpgsql AS $pgrunbook$
BEGIN
  RAISE EXCEPTION 'pgrunbook: % holds captured changes that are on no other server yet', TG_RELID::pg_catalog.regclass
    USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Passes empty it. To end the run: pgrunbook abort.';
END $pgrunbook$;
REVOKE ALL ON FUNCTION pgrunbook.guard() FROM PUBLIC;`

// guard puts it on a table of ours.
func guard(ctx context.Context, tx pgx.Tx, table string) error {
	return script(ctx, tx, fmt.Sprintf("CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %[1]s FOR EACH STATEMENT EXECUTE PROCEDURE pgrunbook.guard(); ALTER TABLE %[1]s ENABLE ALWAYS TRIGGER no_truncate", table))
}

// xColumn is the writing transaction's top-level id: xid8 from 13 on
// (https://www.postgresql.org/docs/13/release-13.html), before that txid_current's bigint.
func xColumn(major int) string {
	if major >= 13 {
		return "x xid8 NOT NULL DEFAULT " + currentX(major)
	}
	return "x bigint NOT NULL DEFAULT " + currentX(major)
}

func currentX(major int) string {
	if major >= 13 {
		return "pg_catalog.pg_current_xact_id()"
	}
	return "pg_catalog.txid_current()"
}

func majorOf(ctx context.Context, conn *pgx.Conn) (int, error) {
	var num int
	err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int4").Scan(&num)
	if err != nil {
		return 0, fmt.Errorf("reading the server's version: %w", err)
	}
	return num / 10000, nil
}

// Prepare makes schema pgrunbook and the tables that a side has once, where they are missing. It
// refuses a schema that another run, or somebody else, uses.
func Prepare(ctx context.Context, conn *pgx.Conn, run scope.Run) error {
	there, err := Owned(ctx, conn, run)
	if err != nil {
		return err
	}
	major, err := majorOf(ctx, conn)
	if err != nil {
		return err
	}
	return inTx(ctx, conn, func(tx pgx.Tx) error {
		if !there {
			if err := createSchema(ctx, tx, run); err != nil {
				return err
			}
		}
		var made bool
		if err := tx.QueryRow(ctx, "SELECT to_regclass('pgrunbook.side') IS NOT NULL").Scan(&made); err != nil {
			return fmt.Errorf("looking for our tables: %w", err)
		}
		if made {
			return sameSide(ctx, tx, run)
		}
		if err := script(ctx, tx, fmt.Sprintf(baseSQL, xColumn(major))); err != nil {
			return fmt.Errorf("creating our tables: %w", err)
		}
		for _, t := range baseTables {
			if err := remark(ctx, tx, "TABLE "+pg.Name(Schema, t), run); err != nil {
				return err
			}
		}
		if err := script(ctx, tx, guardSQL); err != nil {
			return fmt.Errorf("creating our tables: %w", err)
		}
		if err := remark(ctx, tx, "FUNCTION pgrunbook.guard()", run); err != nil {
			return err
		}
		if err := guard(ctx, tx, "pgrunbook.truncated"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO pgrunbook.side (run, mark, gate_key) VALUES ($1, $2, $3)", run.ID, run.Mark, run.GateKey)
		if err != nil {
			return fmt.Errorf("recording the run: %w", err)
		}
		return nil
	})
}

func createSchema(ctx context.Context, tx pgx.Tx, run scope.Run) error {
	_, err := tx.Exec(ctx, "CREATE SCHEMA pgrunbook")
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "42501" { // insufficient_privilege
		return &engine.Error{
			Class: engine.ClassPreflight, Op: "creating schema", Object: Schema, Err: err,
			Hint: "As an administrator: GRANT CREATE ON DATABASE to the connecting role, or CREATE SCHEMA pgrunbook AUTHORIZATION that role.",
		}
	}
	if err != nil {
		return fmt.Errorf("creating schema pgrunbook: %w", err)
	}
	if err := remark(ctx, tx, "SCHEMA pgrunbook", run); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "REVOKE ALL ON SCHEMA pgrunbook FROM PUBLIC"); err != nil {
		return fmt.Errorf("closing schema pgrunbook to others: %w", err)
	}
	return nil
}

// sameSide refuses a side that was prepared with another mark or key: triggers that carry the old
// ones would let nobody, or the wrong sessions, pass.
func sameSide(ctx context.Context, tx pgx.Tx, run scope.Run) error {
	var id, mark string
	var key int64
	if err := tx.QueryRow(ctx, "SELECT run, mark, gate_key FROM pgrunbook.side").Scan(&id, &mark, &key); err != nil {
		return fmt.Errorf("reading whose side this is: %w", err)
	}
	if id != run.ID || mark != run.Mark || key != run.GateKey {
		return &engine.Error{
			Class: engine.ClassPreflight, Op: "using schema", Object: Schema,
			Err:  fmt.Errorf("it was prepared by run %s with other marks", id),
			Hint: "Finish or abort that run first.",
		}
	}
	return nil
}

// remark comments an object; what is "TABLE x", "FUNCTION f()".
func remark(ctx context.Context, tx pgx.Tx, what string, run scope.Run) error {
	if _, err := tx.Exec(ctx, "COMMENT ON "+what+" IS "+pg.Literal(Remark(run))); err != nil {
		return fmt.Errorf("commenting %s: %w", what, err)
	}
	return nil
}

// script runs several statements in tx's transaction.
func script(ctx context.Context, tx pgx.Tx, sql string) error {
	_, err := tx.Conn().PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// SentinelGone reports whether the server crashed since Prepare: it empties UNLOGGED tables then
// (https://www.postgresql.org/docs/current/sql-createtable.html, UNLOGGED).
func SentinelGone(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pgrunbook.sentinel)").Scan(&there); err != nil {
		return false, fmt.Errorf("reading the sentinel: %w", err)
	}
	return !there, nil
}

// ResetSentinel is for after a crash was dealt with.
func ResetSentinel(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "INSERT INTO pgrunbook.sentinel DEFAULT VALUES ON CONFLICT DO NOTHING"); err != nil {
		return fmt.Errorf("setting the sentinel: %w", err)
	}
	return nil
}

// RunOf reads from a side alone whose run it holds: for when the other side, with the journal, is
// gone. The run is empty where nothing of ours is there; without the table side (a removal died)
// it has no mark and no key.
func RunOf(ctx context.Context, conn *pgx.Conn) (scope.Run, error) {
	var run scope.Run
	var side bool
	err := conn.QueryRow(ctx, `SELECT to_regclass('pgrunbook.side') IS NOT NULL,
  coalesce((SELECT substr(obj_description(oid, 'pg_namespace'), length('pgrunbook run ') + 1) FROM pg_namespace
             WHERE nspname = 'pgrunbook' AND obj_description(oid, 'pg_namespace') LIKE 'pgrunbook run %'), '')`).Scan(&side, &run.ID)
	if err == nil && side {
		err = conn.QueryRow(ctx, "SELECT run, mark, gate_key FROM pgrunbook.side").Scan(&run.ID, &run.Mark, &run.GateKey)
	}
	if err != nil {
		return run, fmt.Errorf("reading whose run this side holds: %w", err)
	}
	return run, nil
}
