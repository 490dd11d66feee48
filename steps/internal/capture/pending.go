package capture

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// Count is what waits for a pass of one table.
type Count struct {
	Keys   int64 // rows in the delta; one key may be there many times
	Marks  int64 // truncations
	Images int64
}

// All adds up.
func (c Count) All() int64 { return c.Keys + c.Marks + c.Images }

// recordTables are the tables of schema pgrunbook that hold captured changes.
func recordTables(ctx context.Context, conn *pgx.Conn) (deltas, images []string, err error) {
	rows, err := conn.Query(ctx, `SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pgrunbook' AND c.relkind = 'r' AND (c.relname LIKE 'delta\_%' OR c.relname ~ '^image_[0-9]+$') ORDER BY 1`)
	if err != nil {
		return nil, nil, fmt.Errorf("looking for deltas: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, nil, fmt.Errorf("looking for deltas: %w", err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "delta_") {
			deltas = append(deltas, n)
		} else {
			images = append(images, n)
		}
	}
	return deltas, images, nil
}

// Pending counts what waits, by table id, in one query over all shapes. since is a lower bound of
// the writing transactions' ids, which skips what dead rows an exact pass left behind; 0 counts
// all. Tables with nothing are left out.
func Pending(ctx context.Context, conn *pgx.Conn, since uint64) (map[int32]Count, error) {
	deltas, images, err := recordTables(ctx, conn)
	if err != nil {
		return nil, err
	}
	major, err := majorOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	x := "$1::text::xid8"
	if major < 13 {
		x = "$1::text::int8"
	}
	parts := []string{"SELECT rel, 'm', count(*) FROM pgrunbook.truncated WHERE x >= " + x + " GROUP BY rel"}
	for _, d := range deltas {
		parts = append(parts, fmt.Sprintf("SELECT rel, 'k', count(*) FROM %s WHERE x >= %s GROUP BY rel", pg.Name(Schema, d), x))
	}
	for _, i := range images {
		id := imageID.FindStringSubmatch(i)[1]
		parts = append(parts, fmt.Sprintf("SELECT %s, 'i', count(*) FROM %s WHERE x >= %s HAVING count(*) > 0", id, pg.Name(Schema, i), x))
	}
	rows, err := conn.Query(ctx, strings.Join(parts, " UNION ALL "), fmt.Sprint(since))
	if err != nil {
		return nil, fmt.Errorf("counting what waits: %w", err)
	}
	counts := map[int32]Count{}
	var id int32
	var kind string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&id, &kind, &n}, func() error {
		c := counts[id]
		switch kind {
		case "m":
			c.Marks += n
		case "k":
			c.Keys += n
		default:
			c.Images += n
		}
		counts[id] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("counting what waits: %w", err)
	}
	return counts, nil
}

var imageID = regexp.MustCompile(`^image_([0-9]+)$`)

// Size gives the bytes that captured changes take on this side, indexes included.
func Size(ctx context.Context, conn *pgx.Conn) (int64, error) {
	var size int64
	err := conn.QueryRow(ctx, `SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pgrunbook' AND c.relkind = 'r' AND (c.relname LIKE 'delta\_%' OR c.relname ~ '^image_[0-9]+$' OR c.relname = 'truncated')`).Scan(&size)
	if err != nil {
		return 0, fmt.Errorf("measuring the deltas: %w", err)
	}
	return size, nil
}
