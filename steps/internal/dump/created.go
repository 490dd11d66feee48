package dump

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Made is an object of the target that a restore made: a schema, or an object that a person could
// drop by name.
type Made struct {
	Class    uint32 `json:"class"`
	OID      uint32 `json:"oid"`
	Schema   string `json:"schema"`   // quoted; empty for what is in none
	Type     string `json:"type"`     // as pg_identify_object says it
	Identity string `json:"identity"` // likewise
}

// objectsSQL gives schemas, extensions and every object in or beside schemas that a person could
// drop by name. Objects of extensions and row types are left out: they go with what they belong to.
const objectsSQL = `
WITH o (classid, objid, nsp, first) AS (
  SELECT 'pg_namespace'::regclass::oid, oid, 0::oid, 1 FROM pg_namespace
  UNION ALL SELECT 'pg_extension'::regclass, oid, 0, 2 FROM pg_extension
  UNION ALL SELECT 'pg_class'::regclass, oid, relnamespace, 4 FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND NOT relispartition
  UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, 5 FROM pg_proc
  UNION ALL SELECT 'pg_type'::regclass, t.oid, t.typnamespace, 6 FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
       WHERE t.typelem = 0 AND (c.oid IS NULL OR c.relkind = 'c')
  UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace, 7 FROM pg_operator
  UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace, 8 FROM pg_collation
  UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace, 8 FROM pg_ts_config
  UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace, 9 FROM pg_ts_dict
  UNION ALL SELECT 'pg_foreign_server'::regclass, oid, 0, 10 FROM pg_foreign_server
  UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, 0, 11 FROM pg_foreign_data_wrapper
  UNION ALL SELECT 'pg_event_trigger'::regclass, oid, 0, 3 FROM pg_event_trigger
  UNION ALL SELECT 'pg_language'::regclass, oid, 0, 12 FROM pg_language
)
SELECT o.classid, o.objid, coalesce(i.schema, ''), i.type, i.identity
  FROM o LEFT JOIN pg_namespace n ON n.oid = CASE o.classid WHEN 'pg_namespace'::regclass THEN o.objid ELSE o.nsp END
  CROSS JOIN LATERAL pg_identify_object(o.classid, o.objid, 0) i
 WHERE o.objid >= 16384 AND i.type IS NOT NULL AND i.identity IS NOT NULL -- it may be dropped meanwhile
   AND (n.oid IS NULL OR n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook'))
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.classid AND d.objid = o.objid AND d.deptype IN ('e', 'i', 'a') AND NOT (d.deptype = 'a' AND d.refclassid = 'pg_namespace'::regclass)
         AND d.objsubid = 0) -- a partition key's columns hang on their own table
 ORDER BY o.first, o.objid`

// Objects lists what the target holds, PostgreSQL's own and ours left out.
func Objects(ctx context.Context, conn *pgx.Conn) ([]Made, error) {
	rows, err := conn.Query(ctx, objectsSQL)
	if err != nil {
		return nil, fmt.Errorf("listing the target's objects: %w", err)
	}
	var out []Made
	var m Made
	_, err = pgx.ForEachRow(rows, []any{&m.Class, &m.OID, &m.Schema, &m.Type, &m.Identity}, func() error {
		out = append(out, m)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the target's objects: %w", err)
	}
	return out, nil
}

// NewSince gives the objects of now that are not in before; what is in a new schema goes with it
// and is left out.
func NewSince(before, now []Made) []Made {
	had := map[objectID]bool{}
	for _, m := range before {
		had[objectID{m.Class, m.OID}] = true
	}
	fresh := map[string]bool{}
	var out []Made
	for _, m := range now {
		if had[objectID{m.Class, m.OID}] || fresh[m.Schema] {
			continue
		}
		if m.Type == "schema" {
			fresh[m.Identity] = true
		}
		out = append(out, m)
	}
	return out
}

// DropMade drops what a restore made, in one transaction. An object that is gone, or whose name now
// belongs to another oid, is passed over. Locks are asked for briefly and again.
func DropMade(ctx context.Context, conn *pgx.Conn, made []Made, onWait func(pg.LockWait)) error {
	now, err := Objects(ctx, conn)
	if err != nil {
		return err
	}
	there := map[Made]bool{}
	for _, m := range now {
		there[m] = true
	}
	e := pg.Etiquette{Object: "what the restore made", Mode: pg.AccessExclusive, Report: onWait, GiveUp: dropPatience}
	if e.Relations, err = relationsOf(ctx, conn, made); err != nil {
		return err
	}
	err = pg.WithLock(ctx, conn, e, func(ctx context.Context, tx pgx.Tx) error {
		for _, m := range made {
			if !there[m] {
				continue
			}
			w := alterWord[m.Type]
			if w == "" {
				w = strings.ToUpper(m.Type)
			}
			if _, err := tx.Exec(ctx, "DROP "+w+" IF EXISTS "+m.Identity+" CASCADE"); err != nil {
				return fmt.Errorf("dropping %s %s: %w", m.Type, m.Identity, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("dropping what the restore made: %w", err)
	}
	return nil
}

// dropPatience is short: who holds a table there is named, and the same command goes on.
const dropPatience = time.Minute

// relationsOf gives the tables, and the like, of a list, with everything in its schemas.
func relationsOf(ctx context.Context, conn *pgx.Conn, made []Made) ([]uint32, error) {
	oids := make([]uint32, len(made))
	for i, m := range made {
		oids[i] = m.OID
	}
	rows, err := conn.Query(ctx, "SELECT oid FROM pg_class WHERE oid = ANY ($1::oid[]) OR relnamespace = ANY ($1::oid[])", oids)
	if err != nil {
		return nil, fmt.Errorf("looking at what the restore made: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return nil, fmt.Errorf("looking at what the restore made: %w", err)
	}
	return list, nil
}
