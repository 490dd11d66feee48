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

// markSQL gives when the newest exact pass took its snapshot, by the clock of the side that it read.
const markSQL = "SELECT at FROM pgrunbook.watermark WHERE from_side OPERATOR(pg_catalog.=) $1::text"

// readMark asks the target for the newest exact pass; zero is none.
func readMark(ctx context.Context, target *pg.Server) (at time.Time, err error) {
	conn, err := target.Connect(ctx, pg.Use{Name: "status", ReadOnly: true})
	if err != nil {
		return at, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.to_regclass('pgrunbook.watermark') IS NOT NULL").Scan(&exists); err != nil || !exists {
		return at, err
	}
	err = conn.QueryRow(ctx, markSQL, string(engine.Source)).Scan(&at)
	if errors.Is(err, pgx.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return at, fmt.Errorf("reading the newest pass: %w", err)
	}
	return at, nil
}

// readRows finds how far the target is behind, and counts the rows that wait for a pass. Only the source knows that as
// it is now, by its own clock; the journal has what the runner saw last.
func (st *Status) readRows(ctx context.Context, run *journal.Run, target, source *pg.Server) error {
	if st.Writes == engine.Source && !st.captured() {
		return nil // there are no deltas yet
	}
	var mark time.Time
	if st.Writes == engine.Source {
		var err error
		if mark, err = readMark(ctx, target); err != nil {
			return err
		}
		st.Passed = !mark.IsZero()
	}
	if source != nil {
		st.readPending(ctx, source, mark)
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
	events, err := run.EventsOf(ctx, engine.EventLag, passesSeen)
	if err == nil && len(events) > 0 {
		st.seen(events)
	}
	return err
}

// seen takes what the runner saw from its events, and its times from its own clock alone: a pass that ended had left no
// row when it began; one in pieces tells the rows, and is no exact pass.
func (st *Status) seen(events []engine.Event) {
	last := events[len(events)-1]
	if slices.Contains(passSteps[engine.Target], last.Step) {
		return
	}
	st.Pending, st.PendingAt = &last.Pending, last.At.UTC()
	for _, e := range slices.Backward(events) {
		if e.Pending == 0 && !slices.Contains(passSteps[engine.Target], e.Step) {
			lag := (e.Lag + max(last.At.Sub(e.At), 0)).Seconds()
			st.LagSeconds = &lag
			return
		}
	}
}

// captured reports whether the source has deltas.
func (st *Status) captured() bool {
	return slices.ContainsFunc(st.Steps, func(s StepStatus) bool { return s.Phase == engine.PhaseCapture && s.State == engine.StepDone })
}

// pendingLimit bounds the look at the source: status must answer when it is slow or away.
const pendingLimit = 5 * time.Second

// readPending asks the source; mark is when the newest exact pass read there.
func (st *Status) readPending(ctx context.Context, source *pg.Server, mark time.Time) {
	ctx, cancel := context.WithTimeout(ctx, pendingLimit)
	defer cancel()
	var total int64
	var lag float64
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
		if err != nil || mark.IsZero() {
			return err
		}
		return conn.QueryRow(ctx, "SELECT EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) $1::timestamptz)::float8", mark).Scan(&lag)
	}()
	if err != nil {
		st.SourceNote = "the source cannot be asked: " + err.Error()
		return
	}
	st.Pending = &total
	if !mark.IsZero() {
		lag = max(lag, 0)
		st.LagSeconds = &lag
	}
}
