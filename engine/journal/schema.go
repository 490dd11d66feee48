package journal

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrunbook/pgrunbook/engine"
)

//go:embed schema.sql
var schemaSQL string

// SchemaVersion is the journal's version that this build reads and writes.
const SchemaVersion = 2

// migration brings a journal of the version before to version To.
type migration struct {
	To  int
	SQL string
}

// migrations lists what brings older journals to SchemaVersion, in order. Version 1 is the first.
var migrations = []migration{
	{To: 2, SQL: "ALTER TABLE pgrunbook.table_state ADD COLUMN chunks integer NOT NULL DEFAULT 0"},
}

const lookSQL = `
SELECT n.oid IS NOT NULL AS there,
       m.oid IS NOT NULL AND pg_catalog.obj_description(m.oid, 'pg_class') IS NOT DISTINCT FROM 'pgrunbook journal' AS ours,
       n.oid IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid)
                         AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace = n.oid) AS bare,
       COALESCE(pg_catalog.obj_description(n.oid, 'pg_namespace'), '') AS remark
  FROM (SELECT) one
  LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgrunbook'
  LEFT JOIN pg_catalog.pg_class m ON m.relnamespace = n.oid AND m.relname = 'meta' AND m.relkind = 'r'`

// Holds reports whether a database has the journal of this run: then it is the run's target.
func Holds(ctx context.Context, q querier, run string) (bool, error) {
	var there bool
	err := q.QueryRow(ctx, "SELECT to_regclass('pgrunbook.run') IS NOT NULL").Scan(&there)
	if err == nil && there {
		err = q.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pgrunbook.run WHERE id = $1)", run).Scan(&there)
	}
	if err != nil {
		return false, fmt.Errorf("looking for the journal: %w", err)
	}
	return there, nil
}

// look says whether the journal's schema is there and ours. bare is a schema without content, as
// a DBA makes it for a role that may not create schemas.
func look(ctx context.Context, q querier) (there, ours, bare bool, err error) {
	var remark string
	if err := q.QueryRow(ctx, lookSQL).Scan(&there, &ours, &bare, &remark); err != nil {
		return false, false, false, fmt.Errorf("looking for the journal: %w", err)
	}
	if there && !ours && !bare {
		e := engine.Errorf(engine.ClassPreflight, "Remove or rename that schema on the target, or use another target database.",
			"it exists and is not this tool's journal")
		if remark != "" {
			e.Err = fmt.Errorf("it exists and is not a journal: its comment says %q", remark)
		}
		if id, ok := strings.CutPrefix(remark, "pgrunbook run "); ok { // without it a source that was left takes writes again
			e.Err = fmt.Errorf("it exists and is the source's part of run %s", id)
			e.Hint = "Look whether source and target are swapped: the way back is pgrunbook rollback, with both as they were. Remove that schema only where that run is over, and nothing needs this database closed to writes any more."
		}
		e.Op, e.Object = "using the target's schema", "pgrunbook"
		return there, ours, bare, e
	}
	return there, ours, bare, nil
}

// ensureSchema creates the journal, migrates an older one and refuses a newer one. The runner's
// lock is held.
func ensureSchema(ctx context.Context, tx pgx.Tx, toolVersion string) error {
	there, ours, _, err := look(ctx, tx)
	if err != nil {
		return err
	}
	if ours {
		return upgrade(ctx, tx, toolVersion, SchemaVersion, migrations)
	}
	if !there {
		if _, err := tx.Exec(ctx, "CREATE SCHEMA pgrunbook"); err != nil {
			return cannotCreate(ctx, err)
		}
	}
	if _, err := tx.Conn().PgConn().Exec(ctx, schemaSQL).ReadAll(); err != nil {
		return fmt.Errorf("creating the journal's tables: %w", err)
	}
	if _, err := tx.Exec(ctx, "INSERT INTO pgrunbook.meta (version, tool_version) VALUES ($1::int, $2::text)", SchemaVersion, toolVersion); err != nil {
		return fmt.Errorf("recording the journal's version: %w", err)
	}
	if !there { // in a schema that a DBA made, grants are the DBA's
		if _, err := tx.Exec(ctx, "REVOKE ALL ON SCHEMA pgrunbook FROM PUBLIC"); err != nil {
			return fmt.Errorf("closing the journal to others: %w", err)
		}
	}
	return nil
}

func cannotCreate(_ context.Context, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "42501" { // insufficient_privilege
		return fmt.Errorf("creating schema pgrunbook: %w", err)
	}
	return &engine.Error{
		Class: engine.ClassPreflight, Op: "creating schema", Object: "pgrunbook", Err: err,
		Hint: "As an administrator of the target: CREATE SCHEMA pgrunbook AUTHORIZATION the connecting role, or GRANT CREATE ON DATABASE.",
	}
}

// versionOf reads a journal's version and refuses one that is newer than this build.
func versionOf(ctx context.Context, q querier, newest int) (int, error) {
	var version int
	var tool string
	err := q.QueryRow(ctx, "SELECT version, tool_version FROM pgrunbook.meta").Scan(&version, &tool)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, lost("pgrunbook.meta", "its version")
	}
	if err != nil {
		return 0, fmt.Errorf("reading the journal's version: %w", err)
	}
	if version > newest {
		e := engine.Errorf(engine.ClassPreflight, fmt.Sprintf("Use pgrunbook %s or newer.", tool),
			"it has version %d, written by pgrunbook %s; this build reads up to version %d", version, tool, newest)
		e.Op = "reading the journal"
		return 0, e
	}
	return version, nil
}

func upgrade(ctx context.Context, tx pgx.Tx, toolVersion string, newest int, ms []migration) error {
	version, err := versionOf(ctx, tx, newest)
	if err != nil || version == newest {
		return err
	}
	// Whoever else reads the journal waits behind the migration.
	if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '10s'"); err != nil {
		return fmt.Errorf("migrating the journal: %w", err)
	}
	for _, m := range ms {
		if m.To <= version {
			continue
		}
		_, err := tx.Conn().PgConn().Exec(ctx, m.SQL).ReadAll()
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Code == "55P03" { // lock_not_available
			return &engine.Error{
				Op: fmt.Sprintf("migrating the journal to version %d", m.To), Object: "pgrunbook", Err: err,
				Hint: "Another session holds a table of schema pgrunbook on the target (pg_locks says which): end it, then run the same command again.",
			}
		}
		if err != nil {
			return fmt.Errorf("migrating the journal to version %d: %w", m.To, err)
		}
		version = m.To
	}
	if version != newest {
		return fmt.Errorf("migrating the journal: version %d has no way to version %d", version, newest)
	}
	if _, err := tx.Exec(ctx, "UPDATE pgrunbook.meta SET version = $1::int, tool_version = $2::text", newest, toolVersion); err != nil {
		return fmt.Errorf("recording the journal's version: %w", err)
	}
	return nil
}

const leftoverSQL = `
SELECT COALESCE(pg_catalog.string_agg(x.name, ', ' ORDER BY x.name), '')
  FROM (SELECT c.relname::text AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'pgrunbook' AND c.relkind IN ('r', 'p', 'S', 'v', 'm', 'f')
        UNION ALL
        SELECT p.proname || '()' FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'pgrunbook') x`

const dropTablesSQL = `DROP TABLE IF EXISTS pgrunbook.event, pgrunbook.control, pgrunbook.owner, pgrunbook.flip,
  pgrunbook.approval, pgrunbook.table_state, pgrunbook.item, pgrunbook.step, pgrunbook.holder, pgrunbook.run, pgrunbook.meta`

// Drop removes the journal from the target, and schema pgrunbook with it where the role owns it.
// It refuses while other objects are in the schema, and names them. It comes after the walk: the
// walk still records the end of its last step. The runner's lock stays until Close.
func (r *Run) Drop(ctx context.Context) error {
	r.stopEvents()
	err := r.write(ctx, func(tx pgx.Tx) error {
		if err := Fence(ctx, tx, r.ID, r.Epoch); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, dropTablesSQL); err != nil {
			return err
		}
		var left string
		if err := tx.QueryRow(ctx, leftoverSQL).Scan(&left); err != nil {
			return err
		}
		if left != "" {
			return engine.Errorf(engine.ClassFailed, "Look what they are; finish removes its own objects before the journal.", "schema pgrunbook still holds %s", left)
		}
		var mine bool
		if err := tx.QueryRow(ctx, "SELECT pg_catalog.pg_has_role(nspowner, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = 'pgrunbook'").Scan(&mine); err != nil {
			return err
		}
		if !mine {
			return nil
		}
		_, err := tx.Exec(ctx, "DROP SCHEMA pgrunbook")
		return err
	})
	if err != nil {
		return fmt.Errorf("removing the journal: %w", err)
	}
	r.dropped.Store(true)
	return nil
}
