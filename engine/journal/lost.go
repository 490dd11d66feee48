package journal

import (
	"context"
	"fmt"

	"github.com/pgrunbook/pgrunbook/engine"
)

// putBack is what helps a journal that lost rows.
const putBack = "Somebody removed it, or put a part of a backup back: put the rest of schema pgrunbook back on the target as it was, and run the same command again. "

// lost is the error of a journal that lacks a row without which nothing of the run can be trusted. What it said
// is not guessed.
func lost(table, what string) error {
	e := engine.Errorf(engine.ClassAmbiguous, putBack+"Without a backup, before the cutover: pgrunbook abort --without-target, then begin anew with an empty target.", "the row with %s is gone", what)
	e.Op, e.Object = "reading the journal's table", table
	return e
}

// Lost is the error of a journal that lacks what it had of a step or a table. A run that went on would do what
// was done again, or leave out what was not.
func Lost(table, format string, args ...any) error {
	e := engine.Errorf(engine.ClassAmbiguous, putBack+"Without a backup, before the cutover: pgrunbook abort --drop-target, then begin anew with an empty target.", format, args...)
	e.Op, e.Object = "reading the journal's table", table
	return e
}

// whole proves that the journal has the rows that a run is made with.
func (r *Run) whole(ctx context.Context, q querier) error {
	var owner, control bool
	err := q.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pgrunbook.owner WHERE run = $1::text), EXISTS (SELECT FROM pgrunbook.control WHERE run = $1::text)", r.ID).Scan(&owner, &control)
	switch {
	case err != nil:
		return fmt.Errorf("reading the run's rows: %w", err)
	case !owner:
		return lost("pgrunbook.owner", "who may write in run "+r.ID)
	case !control:
		return lost("pgrunbook.control", "the switches of run "+r.ID)
	}
	return nil
}
