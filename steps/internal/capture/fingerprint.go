package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// fingerprint is all of a table's catalog state that capture relies on. xmin of a catalog row is
// the transaction that last changed it; VACUUM FULL and FREEZE of the catalog keep it.
type fingerprint struct {
	Relations []relPrint `json:"relations"` // the root first
	KeyFits   bool       `json:"key_fits"`  // an immediate, valid, total unique index over the key's columns
	Uniques   int64      `json:"uniques"`   // sum of the oids of the root's unique indexes
	Children  []link     `json:"children"`  // legacy inheritance children of a plain table
	Function  int64      `json:"function"`  // hash of the capture function's body, 0 where it is gone
	Written   int64      `json:"written"`   // oid and xmin of the function, added: one with another body for a while is seen. 0 in records of older builds
	Records   int64      `json:"records"`   // oid of the delta or image table, 0 where it is gone
	Parents   []link     `json:"parents"`   // of the root: legacy parents, or a tree that it was attached to
	// Begun are what the table was when its changes were about to be carried, since it was recorded: see Begin.
	Begun []fingerprint `json:"begun,omitempty"`
}

type link struct {
	Name string `json:"name"`
	Kind string `json:"kind,omitempty"` // relkind
	Xmin int64  `json:"xmin"`
}

type relPrint struct {
	OID         uint32      `json:"oid"`
	Schema      string      `json:"schema"`
	Name        string      `json:"name"`
	Kind        string      `json:"kind"`
	Parent      uint32      `json:"parent"`
	InheritXmin int64       `json:"inherit_xmin"`
	Node        uint32      `json:"node"`      // relfilenode: a rewrite changes it
	NameHash    int64       `json:"name_hash"` // see nameHash, for sums
	Bound       string      `json:"bound"`
	PartKey     string      `json:"part_key"`
	Columns     []colPrint  `json:"columns"`
	Triggers    []trigPrint `json:"triggers"`
}

type colPrint struct {
	Num       int16  `json:"num"`
	Name      string `json:"name"`
	Type      string `json:"type"`
	Base      uint32 `json:"base"` // atttypid
	NotNull   bool   `json:"not_null"`
	Dropped   bool   `json:"dropped"`
	Default   string `json:"default"`
	Collation string `json:"collation"`
	Generated bool   `json:"generated"`
	Kept      string `json:"kept,omitempty"` // of a generated one, pg_attribute.attgenerated: "s" stored, "v" virtual
	Identity  string `json:"identity"`
	// Missing is what rows from before the column hold, unless they were written since; nil is NULL.
	Missing *string `json:"missing,omitempty"`
	Xmin    int64   `json:"xmin"`
	// Said is a hash of the whole row of pg_attribute and of its default's oid: a new xmin with the same hash is a row that
	// was written anew and says nothing new.
	Said int64 `json:"said"`
}

type trigPrint struct {
	Name    string `json:"name"`
	OID     uint32 `json:"oid"`
	Xmin    int64  `json:"xmin"`
	Enabled string `json:"enabled"`
}

// detailSQL reads fingerprints in one statement, so that each is of one instant. $1 and $2 are ids
// and root oids, $3 the key columns, chr(1) between them (” without a key), $4 the shapes of keys. %[1]s is the
// expression for attgenerated, which came with 12, %[4]s that for the value that rows from before a column
// have, which came with 11, %[5]s attgenerated as text.
const detailSQL = `
WITH RECURSIVE root AS (SELECT * FROM unnest($1::int4[], $2::oid[], $3::text[], $4::text[]) AS r (id, oid, cols, shape)),
tree (id, oid, parent, ixmin, level) AS (
  SELECT r.id, r.oid, 0::oid, 0::int8, 0 FROM root r
  UNION ALL
  SELECT t.id, i.inhrelid, i.inhparent, i.xmin::text::int8, t.level + 1
    FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p' JOIN pg_inherits i ON i.inhparent = t.oid),
rels AS (
  SELECT t.id, json_agg(json_build_object(
      'oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind::text, 'parent', t.parent::int8, 'inherit_xmin', t.ixmin,
      'node', c.relfilenode::int8, 'name_hash', %[3]s, 'bound', coalesce(pg_get_expr(c.relpartbound, c.oid), ''),
      'part_key', CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) ELSE '' END,
      'columns', (SELECT json_agg(json_build_object(
            'num', a.attnum, 'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'base', a.atttypid::int8, 'not_null', a.attnotnull,
            'dropped', a.attisdropped, 'default', coalesce(pg_get_expr(d.adbin, d.adrelid), ''), 'generated', %[1]s, 'kept', %[5]s, 'missing', %[4]s, 'identity', a.attidentity::text,
            'collation', coalesce((SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace
                JOIN pg_type ty ON ty.oid = a.atttypid WHERE co.oid = a.attcollation AND a.attcollation <> ty.typcollation), ''),
            'xmin', a.xmin::text::int8, 'said', hashtext(a::text || coalesce(d.oid::text, ''))::int8) ORDER BY a.attnum)
          FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = c.oid AND a.attnum > 0),
      'triggers', (SELECT json_agg(json_build_object('name', g.tgname, 'oid', g.oid::int8, 'xmin', g.xmin::text::int8, 'enabled', g.tgenabled::text) ORDER BY g.tgname)
          FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname LIKE 'pgrunbook\_capture\_%%')
    ) ORDER BY t.level, n.nspname, c.relname) AS list
  FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY t.id)
SELECT r.id, json_build_object('relations', rels.list,
    'children', (SELECT json_agg(json_build_object('name', k.inhrelid::regclass::text, 'kind', 'r', 'xmin', k.xmin::text::int8) ORDER BY k.inhrelid)
       FROM pg_inherits k JOIN pg_class p ON p.oid = k.inhparent AND p.relkind <> 'p' WHERE k.inhparent = r.oid),
    'parents', (SELECT json_agg(json_build_object('name', k.inhparent::regclass::text, 'kind', (SELECT p.relkind::text FROM pg_class p WHERE p.oid = k.inhparent), 'xmin', k.xmin::text::int8) ORDER BY k.inhparent) FROM pg_inherits k WHERE k.inhrelid = r.oid),
    'function', (SELECT coalesce(sum(hashtext(p.prosrc)), 0)::int8 FROM pg_proc p WHERE p.pronamespace = 'pgrunbook'::regnamespace AND p.proname = 'capture_' || r.id),
    'written', (SELECT coalesce(sum(p.oid::int8 + p.xmin::text::int8), 0)::int8 FROM pg_proc p WHERE p.pronamespace = 'pgrunbook'::regnamespace AND p.proname = 'capture_' || r.id),
    'records', coalesce((SELECT to_regclass('pgrunbook.' || CASE c.shape WHEN '' THEN 'image_' || c.id ELSE 'delta_' || c.shape END)::oid::int8 FROM (VALUES (r.id, r.shape)) c (id, shape)), 0),
    'uniques', (SELECT coalesce(sum(x.indexrelid::int8), 0)::int8 FROM pg_index x WHERE x.indrelid = r.oid AND x.indisunique AND x.indisvalid AND x.indimmediate),
    'key_fits', r.cols = '' OR EXISTS (
      SELECT FROM pg_index x WHERE x.indrelid = r.oid AND x.indisunique AND x.indisvalid AND x.indimmediate AND x.indpred IS NULL AND x.indexprs IS NULL
         AND (SELECT string_agg(a.attname::text, chr(1) ORDER BY k.n) FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k (num, n)
                JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = k.num WHERE k.n <= %[2]s) = r.cols))
  FROM root r LEFT JOIN rels ON rels.id = r.id`

// details reads the fingerprints of tables by the oids of their roots. A table that is gone has
// no relations.
func details(ctx context.Context, conn *pgx.Conn, tables []scope.Table, roots []uint32) (map[int32]fingerprint, error) {
	major, err := majorOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	generated, kept, keyColumns := "a.attgenerated <> ''", "a.attgenerated::text", "x.indnkeyatts"
	missing := "CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END"
	if major < 12 {
		generated, kept = "false", "''"
	}
	if major < 11 {
		keyColumns, missing = "x.indnatts", "NULL::text"
	}
	ids, cols, shapes := make([]int32, len(tables)), make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		ids[i], cols[i], shapes[i] = t.ID, keyNames(t), shape(t)
	}
	rows, err := conn.Query(ctx, fmt.Sprintf(detailSQL, generated, keyColumns, nameHash, missing, kept), ids, roots, cols, shapes)
	if err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	prints := map[int32]fingerprint{}
	var id int32
	var raw []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &raw}, func() error {
		var f fingerprint
		err := json.Unmarshal(raw, &f)
		prints[id] = f
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	return prints, nil
}

// keyNames joins the key's column names as detailSQL does.
func keyNames(t scope.Table) string {
	if t.Identity != scope.ByKey {
		return ""
	}
	parts := make([]string, len(t.Key.Columns))
	for i, c := range t.Key.Columns {
		parts[i] = c.Name
	}
	return strings.Join(parts, "\x01")
}

// record is one row of pgrunbook.captured.
type record struct {
	ID      int32
	Rel     uint32
	Mode    string
	Shape   string
	Members []uint32
	raw     []byte
	print   fingerprint
}

const recordedSQL = `SELECT id, rel, mode, shape, members, fingerprint FROM pgrunbook.captured WHERE id = ANY ($1)`

func records(ctx context.Context, conn *pgx.Conn, ids []int32) (map[int32]*record, error) {
	rows, err := conn.Query(ctx, recordedSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("reading what is captured: %w", err)
	}
	all := map[int32]*record{}
	var r record
	_, err = pgx.ForEachRow(rows, []any{&r.ID, &r.Rel, &r.Mode, &r.Shape, &r.Members, &r.raw}, func() error {
		one := r
		one.raw, one.Members = append([]byte(nil), r.raw...), append([]uint32(nil), r.Members...)
		if err := json.Unmarshal(one.raw, &one.print); err != nil {
			return err
		}
		all[one.ID] = &one
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading what is captured: %w", err)
	}
	return all, nil
}

// recorded gives a table's record, or nil.
func recorded(ctx context.Context, conn *pgx.Conn, t scope.Table) (*record, error) {
	all, err := records(ctx, conn, []int32{t.ID})
	return all[t.ID], err
}

// Recorded reports whether a table's capture was finished on this side.
func Recorded(ctx context.Context, conn *pgx.Conn, t scope.Table) (bool, error) {
	r, err := recorded(ctx, conn, t)
	return r != nil && r.Mode == mode(t) && r.Shape == shape(t), err
}

// store records a table as captured with its fingerprint of now. root is what got the triggers: by
// its name another one may be found.
func store(ctx context.Context, conn *pgx.Conn, t scope.Table, root uint32) error {
	prints, err := details(ctx, conn, []scope.Table{t}, []uint32{root})
	if err != nil {
		return err
	}
	if len(prints[t.ID].Relations) == 0 {
		return errors.New(pg.Name(t.Schema, t.Name.Name) + " is gone")
	}
	return put(ctx, conn, t, prints[t.ID], nil)
}

const putSQL = `
INSERT INTO pgrunbook.captured AS c (id, schema_name, table_name, rel, mode, shape, fingerprint, members, sums)
VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9)
ON CONFLICT (id) DO UPDATE SET schema_name = excluded.schema_name, table_name = excluded.table_name, rel = excluded.rel, mode = excluded.mode,
  shape = excluded.shape, fingerprint = excluded.fingerprint, members = excluded.members, sums = excluded.sums
WHERE $10::jsonb IS NULL OR c.fingerprint = $10::jsonb`

// put writes a fingerprint; with a former one only if that still stands, so that of two processes
// the slower one cannot bring back what is old.
func put(ctx context.Context, conn *pgx.Conn, t scope.Table, f fingerprint, former []byte) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("writing the fingerprint of %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	members := make([]uint32, len(f.Relations))
	for i, r := range f.Relations {
		members[i] = r.OID
	}
	_, err = conn.Exec(ctx, putSQL, t.ID, t.Schema, t.Name.Name, f.Relations[0].OID, mode(t), shape(t), string(raw), members, f.sums(), nullable(former))
	if err != nil {
		return fmt.Errorf("recording %s as captured: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	return nil
}

func nullable(b []byte) *string {
	if b == nil {
		return nil
	}
	s := string(b)
	return &s
}
