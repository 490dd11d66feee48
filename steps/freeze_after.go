package steps

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/freeze"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// after closes the old side for good and looks once more. Everything here may be repeated; a
// missing right is reported and does not undo a flip that happened.
func (f *flipper) after(ctx context.Context) error {
	failpoint.Hit("freeze.after")
	c, old := f.env.Runbook.Cutover, f.looks.of(f.from)
	warn := func(what string, err error) {
		fix := engine.HintOf(err)
		if fix == "" || pg.SQLState(err) == "42501" { // a GRANT to our role comes too late
			fix = "Do this by hand as its owner."
		}
		f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: fmt.Sprintf("%s: %v", what, err), Finding: &engine.Finding{
			Code: "CUT001", Severity: engine.SeverityWarning, Side: f.from, Text: fmt.Sprintf("%s: %v", what, err),
			Fix: fmt.Sprintf("The %s's gate is closed all the same. %s", f.from, fix),
		}})
	}
	if f.to == engine.Target {
		if c, err := f.compareDefinitions(ctx); err != nil {
			warn("comparing the definitions of both sides", err)
		} else if c != nil {
			c.left(f.cp)
		}
	}
	if err := f.openedByHand(ctx); err != nil {
		f.cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Message: err.Error(), Finding: &engine.Finding{
			Code: "CUT004", Severity: engine.SeverityWarning, Side: f.to, Text: err.Error(),
			Fix: fmt.Sprintf("The %s takes writes, from sessions that do not begin read-only. Do this by hand as its owner.", f.to),
		}})
	}
	var database string
	if err := old.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
		return fmt.Errorf("closing the %s: %w", f.from, err)
	}
	if c.ReadOnly {
		if _, err := old.Exec(ctx, "ALTER DATABASE "+pgx.Identifier{database}.Sanitize()+" SET default_transaction_read_only = on"); err != nil {
			warn(fmt.Sprintf("setting the %s read-only by default", f.from), err)
		}
		failpoint.Hit("freeze.readonly")
	}
	if c.EndSessions {
		if err := f.endSessions(ctx, old); err != nil {
			warn(fmt.Sprintf("ending the application's sessions on the %s", f.from), err)
		}
	}
	// Only now: a writer that disabled triggers and had not ended before its session was would be missed.
	if err := f.check(ctx); err != nil {
		warn(fmt.Sprintf("the %s's catalog changed during the freeze", f.from), err)
	}
	if err := freeze.Subscribed(ctx, old, f.Tables); err != nil {
		warn(fmt.Sprintf("what is replicated into the %s does not get to the %s", f.from, f.to), err)
	}
	if err := f.lateSequences(ctx); err != nil {
		warn(fmt.Sprintf("sequences of the %s", f.from), err)
	}
	if err := f.standbys(ctx, true); err != nil {
		warn(fmt.Sprintf("standbys of the %s", f.from), err)
	}
	failpoint.Hit("freeze.closed")
	return nil
}

// alike stops before an attempt at the freeze where something changed on the source that catch_up carries, or says what to do
// about; and where a trigger of the target fires for what passes write. What will stay different is named.
func (f *flipper) alike(ctx context.Context) error {
	if f.to == engine.Source {
		return nil
	}
	if err := f.silent(ctx); err != nil {
		return err
	}
	c, err := f.compareDefinitions(ctx)
	if err != nil || c == nil {
		return err
	}
	return c.named(f.cp, f.env.watch.once)
}

// compareDefinitions finds what changed on the source and is not on the target.
func (f *flipper) compareDefinitions(ctx context.Context) (*comparison, error) {
	cursor, err := carriedSoFar(ctx, f.env, f.env.Journal.Checkpoint(catchUpID, f.env.Sink))
	if err != nil {
		return nil, err
	}
	return compareDefinitions(ctx, f.env, f.looks, cursor)
}

// endSessions ends the application's sessions on the old side: their pools would keep connections
// that read old data, since 25006 is no connection error to them.
func (f *flipper) endSessions(ctx context.Context, old *pgx.Conn) error {
	ended, left, err := pg.EndClients(ctx, old, pg.AllClients)
	if err != nil {
		return err
	}
	f.note("%d sessions on the %s were ended", len(ended), f.from)
	if len(left) == 0 {
		return nil
	}
	var names []string
	for _, s := range left {
		names = append(names, s.String())
	}
	return &engine.Error{
		Op: "ending sessions", Object: joinSome(names), Err: errors.New("our role may not end them"),
		Hint: "End them as a superuser with pg_terminate_backend: they may go on reading what is no longer true.",
	}
}

// statementsAtOpen run in the transaction that opens the new side: it loses the default that keeps
// clients away from a side that was closed before, and a target's triggers that fire under the
// replica role get their mode.
func (f *flipper) statementsAtOpen(ctx context.Context) ([]string, error) {
	var list []string
	own := ""
	if f.to == engine.Source {
		own = f.env.Scope.ReadOnlyDefault
	}
	writable, err := resetReadOnly(ctx, f.looks.of(f.to), own)
	if err != nil {
		return nil, fmt.Errorf("asking the %s for its settings: %w", f.to, err)
	}
	if writable != "" {
		list = append(list, writable)
	}
	list = append(list, gate.OpenedSQL)
	if f.to == engine.Source {
		return list, nil
	}
	modes, err := dump.FlipStatements(ctx, f.looks.source, f.looks.target, f.env.Scope, f.env.Runbook.Schema.Mode == "existing")
	return append(list, modes...), err
}

// openedByHand ends what a person who opened to with psql may have left out: sessions that begin there are
// refused every write while its database is read-only by default, and triggers that were made disabled for our sessions do
// not fire. Elsewhere it finds only what changed on the source since the statements at the opening were written down.
func (f *flipper) openedByHand(ctx context.Context) error {
	own := ""
	if f.to == engine.Source {
		own = f.env.Scope.ReadOnlyDefault
	}
	conn := f.looks.of(f.to)
	writable, err := resetReadOnly(ctx, conn, own)
	if err != nil {
		return fmt.Errorf("asking the %s for its settings: %w", f.to, err)
	}
	if writable != "" {
		if _, err := conn.Exec(ctx, writable); err != nil {
			return fmt.Errorf("taking the read-only default off the %s: %s: %w", f.to, writable, err)
		}
	}
	if _, err := conn.Exec(ctx, gate.OpenedSQL+" WHERE closed IS NOT NULL"); err != nil {
		return fmt.Errorf("recording on the %s that it is open: %w", f.to, err)
	}
	if f.to == engine.Source {
		return nil
	}
	left, err := dump.FlipStatements(ctx, f.looks.source, conn, f.env.Scope, f.env.Runbook.Schema.Mode == "existing")
	if err != nil {
		return fmt.Errorf("asking the target for the modes of its triggers: %w", err)
	}
	for i, sql := range left {
		if err := f.modeBesideWriters(ctx, sql); err != nil {
			return fmt.Errorf("not done on the target yet: %s: %w", strings.Join(left[i:], "; "), err)
		}
		f.note("done on the target, which was opened without it: %s", sql)
	}
	return nil
}

// modeBesideWriters runs one of the statements of an opening on a target that takes writes already.
func (f *flipper) modeBesideWriters(ctx context.Context, sql string) error {
	_, e, err := f.modeLock(ctx, sql, "set a mode")
	if err != nil {
		return err
	}
	e.Object = cmp.Or(e.Object, sql) // an event trigger is on no table
	return pg.WithLock(ctx, f.looks.target, e, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql)
		return err
	})
}

// atClose leaves on the side that is closed what a way back needs when the other one is gone with
// the journal.
func (f *flipper) atClose(ctx context.Context, exec freeze.ExecFunc) error {
	note := gate.Note{Epoch: f.env.Run.Epoch, To: f.env.Server(f.to).Address(), Changes: f.cursor.Changes}
	text, err := json.Marshal(note)
	if err != nil {
		return err
	}
	return exec(ctx, gate.ClosedSQL, string(text))
}

const populatedSQL = `
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'm' AND c.relispopulated ORDER BY c.oid`

const emptySQL = `
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'm' ORDER BY c.oid`

// refreshMaterialized fills the target's materialized views just before the freeze, so that the
// application finds none of them empty. Their oids follow their dependencies, since the restore
// made them in that order.
func refreshMaterialized(ctx context.Context, sides *sideConns, cp engine.Checkpoint) error {
	names := func(conn *pgx.Conn, sql string) (list []scope.Name, err error) {
		rows, err := conn.Query(ctx, sql)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowToStructByPos[scope.Name])
	}
	populated, err := names(sides.source, populatedSQL)
	if err != nil {
		return fmt.Errorf("reading the source's materialized views: %w", err)
	}
	want := map[scope.Name]bool{}
	for _, p := range populated {
		want[p] = true
	}
	there, err := names(sides.target, emptySQL)
	if err != nil {
		return fmt.Errorf("reading the target's materialized views: %w", err)
	}
	for _, name := range there {
		if !want[name] {
			continue
		}
		view := pg.Name(name.Schema, name.Name)
		if err := runOn(ctx, sides.target, name, waiting(cp, engine.Target, "refresh on the target"), "REFRESH MATERIALIZED VIEW "+view); err != nil {
			return &engine.Error{Op: "refreshing", Object: view, Err: err, Hint: "Mend it on the target and run the same command again."}
		}
	}
	return nil
}
