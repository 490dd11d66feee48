package capture

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// sums is a fingerprint as a few numbers that add up over tables: a change of a catalog row raises
// its xmin, a rewrite its file node. Reading the sums of all tables takes 22 ms for 3,000 tables,
// the details 70 ms; so details are read only where sums differ.
func (f fingerprint) sums() []int64 {
	var s [sumParts]int64
	root := int64(0)
	for i, r := range f.Relations {
		s[0]++
		s[1] += int64(r.Node)
		s[2] += r.NameHash
		for _, c := range r.Columns {
			s[3]++
			s[4] += c.Xmin
		}
		for _, g := range r.Triggers {
			s[5]++
			s[6] += g.Xmin + int64(g.OID) + int64(g.Enabled[0])
		}
		if i > 0 {
			root++
			s[8] += r.InheritXmin
		}
	}
	s[7], s[9], s[10] = root, root, s[8]
	for _, l := range f.Children {
		s[7]++
		s[8] += l.Xmin
	}
	for _, l := range f.Parents {
		s[9]++
		s[10] += l.Xmin
	}
	s[11], s[12], s[13], s[14] = f.Uniques, f.Function, f.Records, f.Written
	return s[:]
}

const sumParts = 15

// nameHash ties the names of relation c to its oid: the sum over all tables would be the same after two
// of them, or two schemas, had swapped names.
const nameHash = "hashtext(c.oid::text || '.' || n.nspname || '.' || c.relname)::int8"

// differingSQL compares the sums of now with the stored ones: per table, or ($2 false) for all
// tables together under id 0. Each arm gives the parts from one number on; what is stored is taken
// off, and what is left differs. Joined, a dozen sets would take a server longer to plan than to read.
const differingSQL = `
WITH own AS (
  SELECT CASE WHEN $2 THEN id ELSE 0 END AS id, id AS own, rel, shape, members, sums FROM pgrunbook.captured WHERE id = ANY ($1)),
m AS (SELECT own.id, u.rel, u.rel = own.rel AS root FROM own CROSS JOIN LATERAL unnest(own.members) AS u (rel)),
part (id, before, v) AS (
  SELECT m.id, 0, ARRAY[count(*), sum(c.relfilenode::int8), sum(%s)]
    FROM m JOIN pg_class c ON c.oid = m.rel JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY m.id
  UNION ALL SELECT m.id, 3, ARRAY[count(*), sum(t.xmin::text::int8)] FROM m JOIN pg_attribute t ON t.attrelid = m.rel AND t.attnum > 0 GROUP BY m.id
  UNION ALL SELECT m.id, 5, ARRAY[count(*), sum(g.xmin::text::int8 + g.oid::int8 + ascii(g.tgenabled::text))]
    FROM m JOIN pg_trigger g ON g.tgrelid = m.rel AND g.tgname LIKE 'pgrunbook\_capture\_%%' GROUP BY m.id
  UNION ALL SELECT m.id, 7, ARRAY[count(*), sum(i.xmin::text::int8)] FROM m JOIN pg_inherits i ON i.inhparent = m.rel GROUP BY m.id
  UNION ALL SELECT m.id, 9, ARRAY[count(*), sum(i.xmin::text::int8)] FROM m JOIN pg_inherits i ON i.inhrelid = m.rel GROUP BY m.id
  UNION ALL SELECT m.id, 11, ARRAY[sum(x.indexrelid::int8)]
    FROM m JOIN pg_index x ON x.indrelid = m.rel AND m.root WHERE x.indisunique AND x.indisvalid AND x.indimmediate GROUP BY m.id
  UNION ALL SELECT f.id, u.before, u.v
    FROM (SELECT own.id, sum(hashtext(p.prosrc)) AS body, sum(p.oid::int8 + p.xmin::text::int8) AS written
            FROM own JOIN pg_proc p ON p.pronamespace = 'pgrunbook'::regnamespace AND p.proname = 'capture_' || own.own GROUP BY own.id) f
    CROSS JOIN LATERAL (VALUES (12, ARRAY[f.body]), (14, ARRAY[f.written])) AS u (before, v)
  UNION ALL SELECT own.id, 13, ARRAY[sum(t.oid::int8)]
    FROM own JOIN pg_class t ON t.relnamespace = 'pgrunbook'::regnamespace AND t.relname = CASE own.shape WHEN '' THEN 'image_' || own.own ELSE 'delta_' || own.shape END GROUP BY own.id)
SELECT DISTINCT d.id FROM (
  SELECT d.id FROM (
    SELECT part.id, part.before + u.i AS i, u.v FROM part CROSS JOIN LATERAL unnest(part.v) WITH ORDINALITY AS u (v, i)
    UNION ALL SELECT own.id, u.i, -u.v FROM own CROSS JOIN LATERAL unnest(own.sums) WITH ORDINALITY AS u (v, i)) d
   GROUP BY d.id, d.i HAVING sum(d.v) <> 0) d
 ORDER BY 1`

// differing gives the ids of tables whose sums changed.
func differing(ctx context.Context, conn *pgx.Conn, ids []int32) ([]int32, error) {
	sql := fmt.Sprintf(differingSQL, nameHash)
	for _, each := range []bool{false, true} {
		rows, err := conn.Query(ctx, sql, ids, each)
		if err != nil {
			return nil, fmt.Errorf("comparing the catalog with what was captured: %w", err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil {
			return nil, fmt.Errorf("comparing the catalog with what was captured: %w", err)
		}
		if each || len(list) == 0 {
			return list, nil
		}
	}
	return nil, nil
}
