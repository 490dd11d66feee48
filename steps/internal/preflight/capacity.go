package preflight

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"

	"github.com/pgrunbook/pgrunbook/engine"
)

// locksPerRelation is what a pass over a table takes at most: the table, its key's index, and the
// row of a delta's (measured).
const locksPerRelation = 3

// lockTable: the server's lock table is shared with the application, which fails with 53200 when
// it is full (https://www.postgresql.org/docs/current/runtime-config-locks.html).
func lockTable(_ context.Context, f *Facts) ([]engine.Finding, error) {
	need := int64(len(f.relations(true)) * locksPerRelation)
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		per, sessions := s.number("max_locks_per_transaction"), s.number("max_connections")+s.number("max_prepared_transactions")
		slots := per * sessions
		if slots == 0 || need <= slots/2 {
			continue
		}
		wanted := 2*need/sessions + 1
		out = append(out, finding(engine.SeverityError, s.Name, "", fmt.Sprintf("ALTER SYSTEM SET max_locks_per_transaction = %d; and restart.", max(wanted, per*2)),
			"An exact pass locks %d relations at once, and the lock table has %d slots that the application needs too.", need, slots))
	}
	return out, nil
}

func disk(_ context.Context, f *Facts) ([]engine.Finding, error) {
	var rows, indexes, largest int64
	for i := range f.Scope.Tables {
		t := &f.Scope.Tables[i]
		rows, indexes, largest = rows+t.Bytes, indexes+t.IndexBytes, max(largest, t.IndexBytes)
	}
	return one(finding(engine.SeverityInfo, engine.Target, "", "Compare with the free space; SQL cannot see it.",
		"The target needs about %s for tables, %s for indexes and up to %s for sorting while they are built; WAL comes on top. On the source the deltas grow with the changes, to about %s when every row changes once: limit \"delta_size\" watches them.",
		size(rows), size(indexes), size(largest), size(f.DeltaRoom))), nil
}

func size(bytes int64) string { return humanize.IBytes(uint64(max(bytes, 0))) }

// connections: workers, hold, passes and observers need sessions on both sides.
func connections(ctx context.Context, f *Facts) ([]engine.Finding, error) {
	const besides = 8
	need := int64(f.Runbook.Copy.Workers + besides)
	var out []engine.Finding
	for _, s := range []*Side{&f.From, &f.To} {
		var used int64
		if err := s.conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE usename IS NOT NULL").Scan(&used); err != nil {
			return nil, err
		}
		free := s.number("max_connections") - s.number("superuser_reserved_connections") - used
		if free < need {
			out = append(out, finding(engine.SeverityWarning, s.Name, "", "Lower workers in the copy block, or raise max_connections.", "%d sessions are free and up to %d are needed.", max(free, 0), need))
		}
	}
	return out, nil
}
