package load

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// errNotCopied says that a table got new chunks since it was found to be copied.
var errNotCopied = errors.New("the table has chunks left")

// scrub removes the loaded rows whose keys are in the delta: they may be there twice, or in an old
// form that a unique key would refuse. Passes put back what belongs there. It reads the delta
// after the last chunk was marked, and removes the rows in one hash join: there is no index yet.
func (l *Loader) scrub(ctx context.Context, s sides, t scope.Table, state journal.TableState) error {
	return pgx.BeginTxFunc(ctx, s.to, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		var all, left int
		err := tx.QueryRow(ctx, "SELECT count(*), count(*) FILTER (WHERE state <> 'done') FROM pgrunbook.item WHERE run = $1 AND step = $2 AND tbl = $3", l.cfg.Journal.ID, string(l.stepOf(t)), t.ID).Scan(&all, &left)
		if err != nil {
			return fmt.Errorf("looking for chunks of %s: %w", tableName(t), err)
		}
		if left > 0 {
			return errNotCopied
		}
		if err := l.cfg.Journal.SetTableState(ctx, tx, t.ID, journal.Scrubbed, state.Generation, state.Filenodes); err != nil {
			return err
		}
		if all < state.Chunks {
			return lostChunks(t, all, state.Chunks)
		}
		if !keyed(t) || failpoint.Mutant("load.no_scrub") {
			return nil
		}
		if err := l.removeChanged(ctx, s, t); err != nil {
			return fmt.Errorf("removing changed rows of %s: %w", tableName(t), err)
		}
		failpoint.Hit("load.scrubbing")
		return nil
	})
}

func (l *Loader) removeChanged(ctx context.Context, s sides, t scope.Table) error {
	defs, names := make([]string, len(t.Key.Columns)), make([]string, len(t.Key.Columns))
	match := make([]string, len(t.Key.Columns))
	for i, k := range t.Key.Columns {
		names[i] = fmt.Sprintf("k%d", i+1)
		defs[i] = names[i] + " " + k.DeltaType
		right := "s." + names[i]
		if k.Collation != "" {
			defs[i] += " COLLATE " + k.Collation
			right = "(" + right + " COLLATE " + k.Collation + ")"
		}
		match[i] = fmt.Sprintf("t.%s %s %s", pgx.Identifier{k.Name}.Sanitize(), k.Operator, right)
	}
	temp := fmt.Sprintf("pg_temp.scrub_%d", t.ID)
	if _, err := s.to.Exec(ctx, "CREATE TEMPORARY TABLE "+temp+" ("+strings.Join(defs, ", ")+") ON COMMIT DROP"); err != nil {
		return err
	}
	list := strings.Join(names, ", ")
	got, err := pg.Pipe(ctx, s.from, s.to,
		fmt.Sprintf("COPY (SELECT DISTINCT %s FROM %s WHERE rel = %d) TO STDOUT", list, pg.Name("pgrunbook", "delta_"+t.Key.Shape), t.ID),
		"COPY "+temp+" ("+list+") FROM STDIN", nil)
	if err != nil || got.Rows == 0 {
		return err
	}
	if _, err := s.to.Exec(ctx, "ANALYZE "+temp); err != nil {
		return err
	}
	// By the statistics the table may have no row, if it was emptied to be loaded again.
	if _, err := s.to.Exec(ctx, "SET LOCAL enable_nestloop = off"); err != nil {
		return err
	}
	if _, err := s.to.Exec(ctx, "DELETE FROM "+relation(t)+" AS t USING "+temp+" s WHERE "+strings.Join(match, " AND ")); err != nil {
		return err
	}
	if failpoint.Mutant("load.scrub_no_heartbeat") {
		return nil
	}
	return capture.Heartbeat(ctx, s.from) // without its key a removed row would never come back
}
