package compare

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// rangeTypes order alike on every server: no collation, no time zone, no version has a say.
var rangeTypes = map[uint32]string{
	20: "int8", 21: "int2", 23: "int4", 26: "oid", 1082: "date", 1114: "timestamp", 1184: "timestamptz", 2950: "uuid",
}

// cut makes pieces of a table: ranges of its first key column where that is possible and the table
// is larger than a piece, else the whole. The borders come from a sample on from; the first range
// has no lower end and the last no upper one, so that every row is in exactly one.
func (r *runner) cut(ctx context.Context, i int, t scope.Table) ([]piece, error) {
	whole := []piece{{table: i, bytes: t.Bytes}}
	if r.cfg.Mode == Count || t.Bytes <= r.cfg.PieceBytes || t.Key == nil || t.Identity != scope.ByKey {
		return whole, nil
	}
	var column scope.Column
	for _, c := range t.Columns {
		if c.Name == t.Key.Columns[0].Name {
			column = c
		}
	}
	typ := rangeTypes[column.TypeOID]
	if typ == "" {
		return whole, nil
	}
	n := int(t.Bytes/r.cfg.PieceBytes) + 1
	borders, err := r.borders(ctx, t, column.Name, n)
	if err != nil {
		return nil, err
	}
	if len(borders) == 0 {
		return whole, nil
	}
	name := pgx.Identifier{column.Name}.Sanitize()
	literal := func(v string) string { return pg.Literal(v) + "::" + typ }
	var out []piece
	for k := 0; k <= len(borders); k++ {
		var where []string
		if k > 0 {
			where = append(where, name+" >= "+literal(borders[k-1]))
		}
		if k < len(borders) {
			where = append(where, name+" < "+literal(borders[k]))
		}
		out = append(out, piece{table: i, where: " WHERE " + strings.Join(where, " AND "), bytes: t.Bytes / int64(len(borders)+1)})
	}
	return out, nil
}

// borders samples about a thousand pages and takes evenly spaced values.
func (r *runner) borders(ctx context.Context, t scope.Table, column string, n int) ([]string, error) {
	const pages, pageBytes = 1000, 8192
	percent := min(100, 100*float64(pages*pageBytes)/float64(max(t.Bytes, 1)))
	only := "ONLY "
	if t.Kind == scope.Partitioned {
		only = ""
	}
	c := pgx.Identifier{column}.Sanitize()
	rows, err := r.look.from.Query(ctx, fmt.Sprintf(`
SELECT min(k)::text FROM (SELECT k, ntile(%d) OVER (ORDER BY k) AS part FROM (SELECT %s AS k FROM %s%s TABLESAMPLE SYSTEM (%g)) s) p
 GROUP BY part HAVING part > 1 ORDER BY min(k)`, n, c, only, pg.Name(t.Schema, t.Name.Name), percent))
	if err != nil {
		return nil, fmt.Errorf("sampling %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("sampling %s: %w", pg.Name(t.Schema, t.Name.Name), err)
	}
	var out []string
	for _, v := range all {
		if len(out) == 0 || out[len(out)-1] != v {
			out = append(out, v)
		}
	}
	return out, nil
}
