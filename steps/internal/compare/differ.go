package compare

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// maxRows is how many differing rows of a table are named.
const maxRows = 10

// find names the first rows that differ, in the snapshots in which the sums differed: sums per
// bucket of the key's hash, then the rows of differing buckets, merged in the order of their keys.
func (r *runner) find(ctx context.Context, p *pair, pl plan, pc piece, res *TableResult) error {
	n := bucketCount(max(res.FromRows, res.ToRows))
	differing, err := r.buckets(ctx, p, pl, pc, n)
	if err != nil {
		return err
	}
	const atOnce = 8
	for len(differing) > 0 && len(res.Rows) < maxRows {
		part := differing[:min(atOnce, len(differing))]
		differing = differing[len(part):]
		if err := r.rows(ctx, p, pl, pc, n, part, res); err != nil {
			return err
		}
	}
	res.More = res.More || len(differing) > 0
	return nil
}

// bucketCount gives a power of two that leaves about a thousand rows in a bucket.
func bucketCount(rows int64) int {
	n := 16
	for int64(n)*1000 < rows && n < 1<<16 {
		n *= 2
	}
	return n
}

func (pl plan) bucket(n int) string { return fmt.Sprintf("(%s & %d)::int4", pl.m.text(pl.key()), n-1) }

// buckets gives the numbers of the buckets whose sums differ.
func (r *runner) buckets(ctx context.Context, p *pair, pl plan, pc piece, n int) ([]int32, error) {
	sql := "SELECT " + pl.bucket(n) + ", count(*), sum(" + pl.row() + ")::text FROM " + pl.from() + pc.where + " GROUP BY 1"
	var all [2]map[int32]sums
	err := both(ctx, p, func(ctx context.Context, side int, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, sql)
		if err != nil {
			return err
		}
		all[side] = map[int32]sums{}
		var b int32
		var s sums
		_, err = pgx.ForEachRow(rows, []any{&b, &s.rows, &s.hash}, func() error {
			all[side][b] = s
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []int32
	for b := range int32(n) {
		if all[0][b] != all[1][b] {
			out = append(out, b)
		}
	}
	return out, nil
}

// row is one row of a differing bucket.
type row struct {
	key    string
	hash   int64
	label  string
	fields []*int64
}

// rows reads some buckets on both sides and merges them; one row a side is in memory.
func (r *runner) rows(ctx context.Context, p *pair, pl plan, pc piece, n int, part []int32, res *TableResult) error {
	where := pc.where + " WHERE "
	if pc.where != "" {
		where = pc.where + " AND "
	}
	sql := "SELECT " + pl.key() + ` COLLATE "C", ` + pl.row() + ", " + pl.label() + ", " + pl.fields() +
		" FROM " + pl.from() + where + pl.bucket(n) + " = ANY ($1::int4[]) ORDER BY " + pl.order()
	var streams [2]*stream
	for side, conn := range []*pgx.Conn{p.from, p.to} {
		rows, err := conn.Query(ctx, sql, part)
		if err != nil {
			return err
		}
		defer rows.Close()
		streams[side] = &stream{rows: rows}
		if err := streams[side].next(); err != nil {
			return err
		}
	}
	return merge(streams[0], streams[1], pl, res)
}

// order sorts alike on both sides: by the bytes of the key's text in UTF-8.
func (pl plan) order() string {
	if pl.m.utf8 {
		return "convert_to(" + pl.key() + ", 'UTF8'), 2"
	}
	return "1, 2"
}

// stream is one side's rows.
type stream struct {
	rows pgx.Rows
	at   *row // nil: the end
}

func (s *stream) next() error {
	s.at = nil
	if !s.rows.Next() {
		return s.rows.Err()
	}
	var v row
	if err := s.rows.Scan(&v.key, &v.hash, &v.label, &v.fields); err != nil {
		return err
	}
	s.at = &v
	return nil
}

// merge walks both sides in the order of key and hash. Rows of one key that differ are changed;
// keys of one side are missing or extra; a key that one side has twice gives one of each.
func merge(from, to *stream, pl plan, res *TableResult) error {
	for (from.at != nil || to.at != nil) && !res.More {
		a, b := from.at, to.at
		var err error
		switch {
		case b == nil || a != nil && a.key < b.key:
			res.add(RowDifference{Key: a.label, Kind: Missing})
			err = from.next()
		case a == nil || b.key < a.key:
			res.add(RowDifference{Key: b.label, Kind: Extra})
			err = to.next()
		default:
			if a.hash != b.hash {
				res.add(RowDifference{Key: a.label, Kind: Changed, Columns: pl.changed(a, b)})
			}
			if err = from.next(); err == nil {
				err = to.next()
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add names a row, or records that there are more than are named.
func (t *TableResult) add(d RowDifference) {
	if len(t.Rows) >= maxRows {
		t.More = true
		return
	}
	t.Rows = append(t.Rows, d)
}

// changed gives the columns whose own hashes differ.
func (pl plan) changed(a, b *row) []string {
	var out []string
	for i, c := range pl.columns() {
		x, y := a.fields[i], b.fields[i]
		if (x == nil) != (y == nil) || x != nil && *x != *y {
			out = append(out, c.Name)
		}
	}
	return out
}

// joinMax joins up to n words.
func joinMax(words []string, n int) string {
	if len(words) <= n {
		return strings.Join(words, ", ")
	}
	return strings.Join(words[:n], ", ") + fmt.Sprintf(" and %d more", len(words)-n)
}
