package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/engine/journal"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
)

// lagSQL gives the age of the newest exact pass in seconds; its row carries the side's own name.
const lagSQL = `
SELECT (EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) w.at))::float8
  FROM pgrunbook.watermark w WHERE w.from_side OPERATOR(pg_catalog.=) $1::text`

func (st *Status) readLag(ctx context.Context, target *pg.Server) error {
	if st.State != journal.Active || st.Writes != engine.Source {
		return nil
	}
	conn, err := target.Connect(ctx, pg.Use{Name: "status", ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.to_regclass('pgrunbook.watermark') IS NOT NULL").Scan(&exists); err != nil || !exists {
		return err
	}
	var lag float64
	err = conn.QueryRow(ctx, lagSQL, string(engine.Source)).Scan(&lag)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the lag: %w", err)
	}
	lag = max(lag, 0)
	st.LagSeconds = &lag
	return nil
}

// readRows counts the rows that wait for a pass. Only the source knows them as they are now; the journal
// has what the runner saw last: a pass that ended had left none when it began.
func (st *Status) readRows(ctx context.Context, run *journal.Run, source *pg.Server) error {
	if st.Writes == engine.Source && !st.captured() {
		return nil // there are no deltas yet
	}
	if source != nil {
		st.readPending(ctx, source)
	}
	if st.Writes != engine.Source {
		st.Pending = nil // of rows that wait for the way back, AfterFlip tells
		return nil
	}
	if st.Pending != nil {
		return nil
	}
	if source == nil {
		st.SourceNote = "how many rows wait now, the source alone knows: set PGRUNBOOK_SOURCE_URL"
	}
	events, err := run.EventsOf(ctx, engine.EventLag, 1)
	if err != nil || len(events) == 0 || slices.Contains(passSteps[engine.Target], events[0].Step) {
		return err
	}
	st.Pending, st.PendingAt = &events[0].Pending, events[0].At.UTC()
	return nil
}

// captured reports whether the source has deltas.
func (st *Status) captured() bool {
	return slices.ContainsFunc(st.Steps, func(s StepStatus) bool { return s.Phase == engine.PhaseCapture && s.State == engine.StepDone })
}

// pendingLimit bounds the look at the source: status must answer when it is slow or away.
const pendingLimit = 5 * time.Second

func (st *Status) readPending(ctx context.Context, source *pg.Server) {
	ctx, cancel := context.WithTimeout(ctx, pendingLimit)
	defer cancel()
	var total int64
	err := func() error {
		conn, err := source.Connect(ctx, pg.Use{Name: "status", ReadOnly: true})
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
		counts, err := capture.Pending(ctx, conn, nil)
		for _, c := range counts {
			total += c.All()
		}
		return err
	}()
	if err != nil {
		st.SourceNote = "the source cannot be asked: " + err.Error()
		return
	}
	st.Pending = &total
}
