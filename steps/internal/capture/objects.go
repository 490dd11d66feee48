package capture

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// objects makes the delta or image table and the function. A function that is there is replaced, which takes no lock
// on the table, unless it is the one that was recorded and does what it must: each replacement would look like
// somebody else's. Where the table's columns ask for another one, the record is renewed with it.
func objects(ctx context.Context, conn *pgx.Conn, run scope.Run, t scope.Table, root uint32, before *record) error {
	major, err := majorOf(ctx, conn)
	if err != nil {
		return err
	}
	name, create := ImageName(t.ID), imageTableSQL(t.ID, major)
	if t.Identity == scope.ByKey {
		name, create = DeltaName(t.Key.Shape), deltaTableSQL(t.Key, major)
	}
	err = inTx(ctx, conn, func(tx pgx.Tx) error {
		// Two workers may meet at one shape.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext($1), 0)", "pgrunbook "+name); err != nil {
			return err
		}
		var there bool
		if err := tx.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", name).Scan(&there); err != nil {
			return err
		}
		if !there {
			if err := script(ctx, tx, create); err != nil {
				return err
			}
			if err := guard(ctx, tx, name); err != nil {
				return err
			}
			if err := remark(ctx, tx, "TABLE "+name, run); err != nil {
				return err
			}
		}
		untouched, right, err := lookAt(ctx, tx, t, root, major, before)
		if err != nil || untouched && right {
			return err
		}
		if err := script(ctx, tx, functionSQL(t, root, major)); err != nil {
			return err
		}
		function := FunctionName(t.ID) + "()"
		if _, err := tx.Exec(ctx, "REVOKE ALL ON FUNCTION "+function+" FROM PUBLIC"); err != nil {
			return err
		}
		if err := remark(ctx, tx, "FUNCTION "+function, run); err != nil || !untouched {
			return err
		}
		return renew(ctx, tx, t.ID)
	})
	if err != nil {
		return fmt.Errorf("capturing %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	return nil
}

// writtenSQL reads the function of table $1 as fingerprints have it, and whether its body is $2.
const writtenSQL = `
SELECT coalesce(sum(hashtext(p.prosrc)), 0)::int8, coalesce(sum(p.oid::int8 + p.xmin::text::int8), 0)::int8, coalesce(bool_and(p.prosrc = $2), false)
  FROM pg_proc p WHERE p.pronamespace = 'pgrunbook'::regnamespace AND p.proname = 'capture_' || $1::int4`

// querier is a session or its transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// lookAt reports whether a table's function is the one that was recorded, and whether it has the body that the table needs.
func lookAt(ctx context.Context, q querier, t scope.Table, root uint32, major int, before *record) (untouched, right bool, err error) {
	var now fingerprint
	body := strings.Split(functionSQL(t, root, major), "$pgrunbook$")[1]
	if err := q.QueryRow(ctx, writtenSQL, t.ID, body).Scan(&now.Function, &now.Written, &right); err != nil {
		return false, false, fmt.Errorf("looking at %s: %w", FunctionName(t.ID), err)
	}
	if before == nil {
		return false, right, nil
	}
	now.Records = before.print.Records // another matter
	return before.print.written(now), right, nil
}

// wanted reports whether a table's function has the body that it needs.
func wanted(ctx context.Context, conn *pgx.Conn, t scope.Table, root uint32) (bool, error) {
	major, err := majorOf(ctx, conn)
	if err != nil {
		return false, err
	}
	_, right, err := lookAt(ctx, conn, t, root, major, nil)
	return right, err
}

// renewSQL brings the record of table $1 up to its function, as fingerprint and sums have it. Numbers of an array
// begin with 1.
const renewSQL = `
UPDATE pgrunbook.captured c
   SET fingerprint = c.fingerprint || jsonb_build_object('function', p.body, 'written', p.written), sums[13] = p.body, sums[15] = p.written
  FROM (SELECT hashtext(prosrc)::int8 AS body, oid::int8 + xmin::text::int8 AS written FROM pg_proc WHERE oid = $2::regprocedure) p
 WHERE c.id = $1`

func renew(ctx context.Context, tx pgx.Tx, id int32) error {
	if _, err := tx.Exec(ctx, renewSQL, id, FunctionName(id)+"()"); err != nil {
		return fmt.Errorf("recording %s: %w", FunctionName(id), err)
	}
	return nil
}

// Neutralize makes a table's capture function do nothing, without a lock on the table: the way out
// when an application's DDL makes its writes fail. The table must be loaded again afterwards.
func Neutralize(ctx context.Context, conn *pgx.Conn, id int32) error {
	if _, err := conn.Exec(ctx, noopSQL(FunctionName(id))); err != nil {
		return fmt.Errorf("silencing capture of table %d: %w", id, err)
	}
	return nil
}

func noopSQL(function string) string {
	return "CREATE OR REPLACE FUNCTION " + function + "() RETURNS pg_catalog.trigger LANGUAGE plpgsql SECURITY DEFINER AS $pgrunbook$ BEGIN RETURN NULL; END $pgrunbook$"
}
