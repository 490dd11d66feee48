package capture

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Waits reports whether a captured change of any of the tables waits for a pass. Unlike Pending it reads one entry
// of a table's index, however many there are. low has for each table the transaction id below which no
// change of it is left, and is raised by what is seen: dead rows that passes leave behind, which stay as long as
// anybody's snapshot is older, are read once. Whoever asks another server begins with an empty one.
func Waits(ctx context.Context, conn *pgx.Conn, tables []scope.Table, low map[int32]uint64) (bool, error) {
	deltas, images, err := recordTables(ctx, conn)
	if err != nil {
		return false, err
	}
	major, err := majorOf(ctx, conn)
	if err != nil {
		return false, err
	}
	there := map[string]bool{}
	for _, d := range deltas {
		there[pg.Name(Schema, d.name)] = true
	}
	for _, i := range images {
		there[pg.Name(Schema, i)] = true
	}
	sql, args := waitsSQL(tables, there, low, major)
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return false, fmt.Errorf("looking for what waits: %w", err)
	}
	oldest, marked, xmin := map[int32]uint64{}, false, uint64(0)
	var kind, x string
	var id int32
	_, err = pgx.ForEachRow(rows, []any{&kind, &id, &x}, func() (err error) {
		switch kind {
		case "snapshot":
			xmin, err = strconv.ParseUint(x, 10, 64)
		case "mark":
			marked = true
		default:
			oldest[id], err = strconv.ParseUint(x, 10, 64)
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("looking for what waits: %w", err)
	}
	for _, t := range tables { // who began before the snapshot and had not ended has an id from xmin on
		if low[t.ID] = max(low[t.ID], xmin); oldest[t.ID] > 0 {
			low[t.ID] = min(low[t.ID], oldest[t.ID])
		}
	}
	return marked || len(oldest) > 0, nil
}

// waitsSQL gives for each table the oldest change that waits, by one probe of the index over it.
func waitsSQL(tables []scope.Table, there map[string]bool, low map[int32]uint64, major int) (sql string, args []any) {
	xid := "xid8"
	if major < 13 {
		xid = "int8"
	}
	shapes := map[string][]scope.Table{}
	var ids []int32
	parts := []string{"SELECT 'snapshot' AS kind, 0 AS id, txid_snapshot_xmin(txid_current_snapshot())::text AS x"}
	for _, t := range tables {
		ids = append(ids, t.ID)
		keyed := t.Identity == scope.ByKey || t.Identity == ""
		switch {
		case !keyed && there[ImageName(t.ID)]:
			parts = append(parts, fmt.Sprintf("(SELECT 'change', %d, i.x::text FROM %s i WHERE i.x >= '%d'::%s ORDER BY i.x LIMIT 1)", t.ID, ImageName(t.ID), low[t.ID], xid))
		case keyed && t.Key != nil && there[DeltaName(t.Key.Shape)]:
			shapes[DeltaName(t.Key.Shape)] = append(shapes[DeltaName(t.Key.Shape)], t)
		}
	}
	args = []any{ids}
	parts = append(parts, "(SELECT 'mark', rel, '' FROM pgrunbook.truncated WHERE rel = ANY($1::int4[]) LIMIT 1)")
	for _, delta := range slices.Sorted(maps.Keys(shapes)) {
		var of []int32
		var lows []string
		for _, t := range shapes[delta] {
			of, lows = append(of, t.ID), append(lows, strconv.FormatUint(low[t.ID], 10))
		}
		args = append(args, of, lows)
		parts = append(parts, fmt.Sprintf("SELECT 'change', u.id, d.x::text FROM unnest($%d::int4[], $%d::text[]) AS u (id, low) CROSS JOIN LATERAL"+
			" (SELECT d.x FROM %s d WHERE d.rel = u.id AND d.x >= u.low::%s ORDER BY d.x LIMIT 1) d", len(args)-1, len(args), delta, xid))
	}
	return strings.Join(parts, " UNION ALL "), args
}
