package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// named tells a person, before writes are held, what differs and will stay so, each once; an error is what a
// rule can still carry, or must not be passed over.
func (c *comparison) named(cp interface{ Emit(engine.Event) }, once func(text string) bool) error {
	for _, d := range c.differences {
		if c.made(d) || c.atFlip(d) {
			continue
		}
		if !d.mild && !d.later {
			return &engine.Error{Op: "comparing the definitions of both sides", Object: d.item.ID(), Err: errors.New(d.text()), Hint: "Run the same command again: catch_up carries it, or says what to do."}
		}
		if f := d.finding(); once(f.Text) {
			cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Object: f.Object, Message: f.Text, Finding: f})
		}
	}
	return nil
}

// left tells what differs once the target takes writes: no step carries it any more.
func (c *comparison) left(cp interface{ Emit(engine.Event) }) {
	for _, d := range c.differences {
		if c.made(d) || c.atFlip(d) {
			continue
		}
		f := d.finding()
		if !d.mild && !d.later {
			f.Code, f.Text = "CUT001", "definitions differ between both sides: "+f.Text
			if len(d.sql) > 0 && d.verb != "was dropped" {
				f.Fix += " On the target: " + strings.Join(d.sql, "; ")
			}
		}
		cp.Emit(engine.Event{Kind: engine.EventDiagnosed, Level: "warn", Object: f.Object, Message: f.Text, Finding: f})
	}
}

// atFlip reports whether the statements at the opening make a definition, or leave it as it is.
func (c *comparison) atFlip(d difference) bool {
	return d.atFlip && (len(d.sql) == 0 || c.target[d.item.ID()].Def == d.item.Def || dump.Unchanged(c.was, d.item))
}

// made reports whether what comes after the rows has made a definition.
func (c *comparison) made(d difference) bool {
	_, there := c.target[d.item.ID()]
	return d.later && there && len(d.sql) == 0
}

// mendRefused looks, when the target refused a row in the load, for definitions that changed since
// the structure was restored, and makes the target's alike. It is false where nothing of that kind
// explains the refusal.
func mendRefused(ctx context.Context, env *Env, cp engine.Checkpoint) (bool, error) {
	sides, err := openSidesToDefine(ctx, env, "definitions")
	if err != nil {
		return false, err
	}
	defer sides.close(context.WithoutCancel(ctx))
	changes, err := capture.Check(ctx, sides.source, env.Run, captured(env))
	if err == nil {
		err = leaving(env, changes)
	}
	if err == nil {
		err = capture.Err(changes)
	}
	if err != nil {
		return false, err
	}
	cursor, err := carriedSoFar(ctx, env, cp)
	if err != nil {
		return false, err
	}
	c, err := compareDefinitions(ctx, env, sides, cursor)
	if err != nil || c == nil {
		return false, err
	}
	if err := sides.durable(ctx); err != nil { // what was compared
		return false, err
	}
	var carried []difference
	for _, d := range c.differences {
		if len(d.sql) == 0 || d.restore || d.later || d.mild || d.made != nil {
			continue
		}
		if env.Runbook.Schema.OnDDL != "carry" && !c.atFlip(d) {
			return false, d.stop(true)
		}
		carried = append(carried, d)
	}
	if err := cursor.begin(ctx, cp, carried); err != nil {
		return false, err
	}
	for _, d := range carried {
		if err := d.carry(ctx, cp, sides); err != nil {
			return false, err
		}
	}
	if err := c.alignDefaults(ctx, env, cp, sides); err != nil || len(carried) == 0 {
		return false, err
	}
	return true, cursor.end(ctx, cp, carried)
}

// carry tells of a difference and runs its statements on the target.
func (d *difference) carry(ctx context.Context, cp engine.Checkpoint, sides *sideConns) error {
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: d.item.ID(), Message: fmt.Sprintf("%s: carried to the target%s", d.text(), d.how())})
	return d.run(ctx, cp, sides)
}

// undefined reports whether a statement named what is not there: a table, function, type or column, or a schema; or a
// parent that its child is not like yet.
func undefined(err error) bool {
	return slices.Contains([]string{"42P01", "42883", "42704", "42703", "3F000", "42804"}, pg.SQLState(err))
}

// run runs the statements of a difference that did not run yet: each is committed on its own.
func (d *difference) run(ctx context.Context, cp engine.Checkpoint, sides *sideConns) error {
	for _, sql := range d.sql[d.ran:] {
		err := d.politely(ctx, cp, sides, sql)
		check := d.item.Kind == dump.ItemCheck || d.item.Kind == dump.ItemDomainCheck
		if check && pg.SQLState(err) == "23514" { // rows that passes have still to bring; see afterRows
			err = d.politely(ctx, cp, sides, sql+" NOT VALID")
		}
		if err != nil {
			return &engine.Error{
				Op: "carrying a change to the target", Object: d.item.ID(), Err: fmt.Errorf("%s: %w", sql, err),
				Hint: "Make the same change on the target by hand, then run the same command again.",
			}
		}
		d.ran++
		failpoint.Hit("definitions.carried")
	}
	return nil
}

// relationSQL compares a name as pgx.Identifier writes it.
const relationSQL = `
SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE '"' || replace(n.nspname::text, '"', '""') || '"."' || replace(c.relname::text, '"', '""') || '"' = $1`

// politely runs a statement on the target under the lock etiquette of internal/pg.
func (d difference) politely(ctx context.Context, cp engine.Checkpoint, sides *sideConns, sql string) error {
	e := pg.Etiquette{Object: d.item.ID(), Mode: pg.AccessExclusive, Report: waiting(cp, engine.Target, "carry a change to the target")}
	rel := d.item.On
	if rel == "" {
		rel = d.item.Name
	}
	if d.key != nil {
		rel = d.key.want.Table
	}
	// By comparison: to_regclass refuses what is no relation's name, as a function's.
	rows, err := sides.target.Query(ctx, relationSQL, rel)
	if err != nil {
		return err
	}
	if e.Relations, err = pgx.CollectRows(rows, pgx.RowTo[uint32]); err != nil {
		return err
	}
	return pg.WithSessionLock(ctx, sides.target, e, func(ctx context.Context) error {
		_, err := sides.target.Exec(ctx, sql)
		return err
	})
}

// settle makes the target like the source where a rule says so. Names of what is done are told; the
// first difference without a rule is an error.
func (c *comparison) settle(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, cursor *catchUpCursor) (err error) {
	stop := env.Runbook.Schema.OnDDL != "carry"
	if !stop {
		if err := c.dropMade(ctx, env, cp, sides); err != nil {
			return err
		}
	}
	var restore []dump.Item
	var later []difference // they name what is new itself
	var carried, unused []difference
	var without error // a rule
	for _, d := range c.differences {
		switch {
		case d.item.Kind == dump.ItemSequence && d.verb == "was dropped" && !stop:
			unused = append(unused, d)
		case d.mild && !d.restore, (d.later || d.atFlip) && len(d.sql) == 0: // the latter in either mode: it is made from the source as it is then
		case without != nil:
		case c.atFlip(d): // likewise
			carried = append(carried, d)
		case stop || !d.carried():
			without = d.stop(stop)
		default:
			carried = append(carried, d)
		}
	}
	if err := cursor.begin(ctx, cp, carried); err != nil {
		return err
	}
	for _, d := range carried {
		if err := d.carry(ctx, cp, sides); undefined(err) {
			later = append(later, d)
		} else if err != nil {
			return err
		}
		if d.restore {
			restore = append(restore, d.item)
		}
	}
	if without != nil {
		return without
	}
	if len(restore) > 0 {
		if err := restoreNew(ctx, env, cp, sides, restore, cursor); err != nil {
			return err
		}
	}
	if err := runLater(ctx, cp, sides, later); err != nil {
		return err
	}
	for _, d := range unused { // by now, as a rule: what used it has changed as well, or does when passes see it
		if err := d.run(ctx, cp, sides); err == nil {
			cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: d.item.ID(), Message: d.text() + ": dropped on the target too" + d.how()})
		} else if !d.mild || !slices.Contains([]string{"2BP01", "42501"}, pg.SQLState(err)) { // it is used, which a server says after whose it is
			return err
		}
	}
	if err := c.alignDefaults(ctx, env, cp, sides); err != nil {
		return err
	}
	for _, d := range c.differences {
		if d.key != nil {
			for _, k := range d.key.gone() {
				if id := k.Item().ID(); id != d.item.ID() {
					cursor.Handled[id] = gone
				}
			}
		}
	}
	if err := c.rekey(ctx, env); err != nil {
		return err
	}
	return cursor.end(ctx, cp, slices.DeleteFunc(slices.Clone(c.differences), func(d difference) bool { return d.mild && !d.later && !d.restore }))
}

// runLater runs what named what was not there; one may need another, so as long as one of them gets on all are tried.
func runLater(ctx context.Context, cp engine.Checkpoint, sides *sideConns, later []difference) error {
	for len(later) > 0 {
		var still []difference
		var why error
		moved := false
		for _, d := range later {
			ran := d.ran
			err := d.run(ctx, cp, sides)
			moved = moved || err == nil || d.ran > ran
			if err != nil && !undefined(err) {
				return err
			}
			if err != nil {
				still, why = append(still, d), cmp.Or(why, err)
			}
		}
		if !moved {
			return why
		}
		later = still
	}
	return nil
}

func (d difference) how() string {
	if d.restore {
		return " by pg_restore"
	}
	return ": " + strings.Join(d.sql, "; ")
}

func (d difference) stop(byRule bool) error {
	e := &engine.Error{Op: "following", Object: d.item.ID(), Err: errors.New(d.text())}
	switch {
	case d.carried():
		e.Hint = `Undo the change, or set schema { on_ddl = "carry" } in the runbook and run the same command again; the target then gets it` + d.how()
	case byRule:
		e.Hint = "Undo the change, or make the same one on the target, then run the same command again."
	default:
		e.Hint = "Make the same change on the target, or undo it, then run the same command again. If it cannot be made there, begin again: pgrunbook abort --drop-target, then pgrunbook plan."
	}
	return e
}

// restoreNew makes new definitions from a dump of the source, as the schema phase does.
func restoreNew(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, items []dump.Item, cursor *catchUpCursor) error {
	before, err := dump.Objects(ctx, sides.target)
	if err != nil {
		return err
	}
	cursor.Before = before
	if err := cp.Save(ctx, nil, cursor); err != nil {
		return err
	}
	roles, err := (&constraintsStep{env: env}).roles(ctx, sides)
	if err != nil {
		return err
	}
	present, err := dump.ReadPresent(ctx, sides.target)
	if err != nil {
		return err
	}
	a, o, err := (&schemaStep{env: env}).archive(ctx, sides, roles, present)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	entries, err := a.Of(ctx, sides.source, sides.target, items)
	if err != nil {
		return err
	}
	if err := restoreEntries(ctx, env, cp, sides, a, o, roles, entries); err != nil {
		return err
	}
	failpoint.Hit("definitions.restored")
	return cursor.restored(ctx, cp, sides.target)
}
