package capture

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
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

// delta is one table of captured keys.
type delta struct {
	name  string
	bytes int64 // of its heap
}

// recordTables are the tables of schema pgrunbook that hold captured changes.
func recordTables(ctx context.Context, conn *pgx.Conn) (deltas []delta, images []string, err error) {
	rows, err := conn.Query(ctx, `SELECT c.relname::text, pg_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pgrunbook' AND c.relkind = 'r' AND (c.relname LIKE 'delta\_%' OR c.relname ~ '^image_[0-9]+$') ORDER BY 1`)
	if err != nil {
		return nil, nil, fmt.Errorf("looking for deltas: %w", err)
	}
	var d delta
	_, err = pgx.ForEachRow(rows, []any{&d.name, &d.bytes}, func() error {
		if strings.HasPrefix(d.name, "delta_") {
			deltas = append(deltas, d)
		} else {
			images = append(images, d.name)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("looking for deltas: %w", err)
	}
	return deltas, images, nil
}

// smallDelta is the heap, in bytes, up to which a delta is counted whole: that takes milliseconds.
const smallDelta = 16 << 20

// Pending counts what waits, by table id, in one query over all shapes. low has for each table that passes
// follow the id below which no captured change of it is left: in a big delta, counting begins there, since
// a pass leaves dead rows behind that stay as long as anybody's snapshot is older, and reading them takes
// seconds that a freeze does not have. Without low all is read. Tables with nothing are left out.
func Pending(ctx context.Context, conn *pgx.Conn, low map[int32]uint64) (map[int32]Count, error) {
	deltas, images, err := recordTables(ctx, conn)
	if err != nil {
		return nil, err
	}
	major, err := majorOf(ctx, conn)
	if err != nil {
		return nil, err
	}
	sql, args := pendingSQL(deltas, images, low, major)
	rows, err := conn.Query(ctx, sql, args...)
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

func pendingSQL(deltas []delta, images []string, low map[int32]uint64, major int) (sql string, args []any) {
	xid := "xid8"
	if major < 13 {
		xid = "int8"
	}
	ids := slices.Sorted(maps.Keys(low))
	lows := make([]string, len(ids))
	for i, id := range ids {
		lows[i] = strconv.FormatUint(low[id], 10)
	}
	parts := []string{"SELECT rel, 'm', count(*) FROM pgrunbook.truncated GROUP BY rel"}
	for _, d := range deltas {
		if len(low) == 0 || d.bytes <= smallDelta {
			parts = append(parts, fmt.Sprintf("SELECT rel, 'k', count(*) FROM %s GROUP BY rel", pg.Name(Schema, d.name)))
			continue
		}
		args = []any{ids, lows}
		parts = append(parts, fmt.Sprintf("SELECT u.id, 'k', c.n FROM unnest($1::int4[], $2::text[]) AS u (id, low) CROSS JOIN LATERAL"+
			" (SELECT count(*) AS n FROM %s d WHERE d.rel = u.id AND d.x >= u.low::%s) c WHERE c.n > 0", pg.Name(Schema, d.name), xid))
	}
	for _, i := range images {
		id := imageID.FindStringSubmatch(i)[1]
		parts = append(parts, fmt.Sprintf("SELECT %s, 'i', count(*) FROM %s HAVING count(*) > 0", id, pg.Name(Schema, i)))
	}
	return strings.Join(parts, " UNION ALL "), args
}

var imageID = regexp.MustCompile(`^image_([0-9]+)$`)
