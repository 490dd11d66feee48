package steps

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// catchUpCursor is what the step keeps of definitions that it carried.
type catchUpCursor struct {
	Handled map[string]string `json:"handled,omitempty"` // by name, as dump.Fingerprint has them
	Again   map[string]string `json:"again,omitempty"`   // likewise, what came again after it was gone
	Made    []dump.Made       `json:"made,omitempty"`    // on the target, for abort
	Before  []dump.Made       `json:"before,omitempty"`  // what the target held before a restore that is not in Made yet
}

// made is what abort drops: what is recorded, and what a process that died in a restore has made.
func (c catchUpCursor) made(ctx context.Context, target *pgx.Conn) ([]dump.Made, error) {
	if c.Before == nil {
		return c.Made, nil
	}
	now, err := dump.Objects(ctx, target)
	if err != nil {
		return nil, err
	}
	return slices.Concat(c.Made, dump.NewSince(c.Before, now)), nil
}

// restored records what a restore has made.
func (c *catchUpCursor) restored(ctx context.Context, cp engine.Checkpoint, target *pgx.Conn) (err error) {
	if c.Before == nil {
		return nil
	}
	if c.Made, err = c.made(ctx, target); err != nil {
		return err
	}
	c.Before = nil
	return cp.Save(ctx, nil, c)
}

// begin records what is about to be carried: the source may take it back before the end of that is recorded, or before what
// failed of it is tried again, and the target may have it by then.
func (c *catchUpCursor) begin(ctx context.Context, cp engine.Checkpoint, list []difference) error {
	for _, d := range list {
		c.Handled[d.item.ID()] = begun
	}
	if len(list) == 0 {
		return nil
	}
	if err := cp.Save(ctx, nil, c); err != nil {
		return err
	}
	failpoint.Hit("definitions.begun")
	return nil
}

// end records what was carried.
func (c *catchUpCursor) end(ctx context.Context, cp engine.Checkpoint, list []difference) error {
	for _, d := range list {
		c.Handled[d.item.ID()] = d.item.Def[:min(12, len(d.item.Def))]
		if d.verb == "was dropped" {
			c.Handled[d.item.ID()] = gone
		}
	}
	return cp.Save(ctx, nil, c)
}

// carriedSoFar gives what cp's step keeps of that, with what the copy step carried before there was a catch_up.
func carriedSoFar(ctx context.Context, env *Env, cp engine.Checkpoint) (cursor catchUpCursor, err error) {
	if _, err := cp.Load(ctx, &cursor); err != nil {
		return cursor, err
	}
	handled, again := map[string]string{}, map[string]string{}
	for _, id := range []engine.StepID{copyID, constraintsID} { // what they made, as it was then
		var built catchUpCursor
		if _, err := env.Journal.Checkpoint(id, env.Sink).Load(ctx, &built); err != nil {
			return cursor, err
		}
		maps.Copy(handled, built.Handled)
		maps.Copy(again, built.Again)
	}
	maps.Copy(handled, cursor.Handled)
	for id, def := range again {
		if handled[id] == gone {
			handled[id] = def
		}
	}
	cursor.Handled = handled
	return cursor, nil
}

// definitions makes new tables and sequences in scope part of the run and carries what else changed
// on the source and has a rule. What has none stops, named.
func (s *catchUpStep) definitions(ctx context.Context, cp engine.Checkpoint) error {
	sides, err := openSidesToDefine(ctx, s.env, "definitions")
	if err != nil {
		return err
	}
	defer sides.close(context.WithoutCancel(ctx))
	if err := leave(ctx, s.env, cp, sides); err != nil {
		return err
	}
	if err := joinAgain(ctx, s.env, cp, sides); err != nil { // of a process that died, and before a key that is none any more is captured
		return err
	}
	if err := armJoined(ctx, s.env, cp, sides); err != nil {
		return err
	}
	n, err := readNews(ctx, s.env, sides.source)
	if err != nil {
		return err
	}
	if err := stopping(ctx, s.env, sides.source, n); err != nil {
		return err
	}
	if err := n.parentsFirst(ctx, s.env, sides.source); err != nil {
		return err
	}
	if err := renameIdentities(ctx, s.env, cp, sides); err != nil {
		return err
	}
	if !n.empty() && s.env.Runbook.Schema.OnDDL != "carry" {
		return n.stop()
	}
	if !n.empty() {
		if err := sides.durable(ctx); err != nil {
			return err
		}
	}
	if err := n.leave(ctx, s.env, cp, sides); err != nil { // first: a tree that is new itself comes with all its partitions
		return err
	}
	cursor, err := carriedSoFar(ctx, s.env, cp)
	if err == nil {
		err = cursor.restored(ctx, cp, sides.target) // by a process that died
	}
	if err != nil {
		return err
	}
	c, err := compareDefinitions(ctx, s.env, sides, cursor)
	if err != nil {
		return err
	}
	failpoint.Hit("catch_up.compared")
	if err := tellTemporary(ctx, s.env, cp, sides); err != nil {
		return err
	}
	if err := s.reopen(ctx, c, n); err != nil { // first: whoever comes after a death sees nothing new any more
		return err
	}
	if c != nil {
		if err := sides.durable(ctx); err != nil { // what was compared
			return err
		}
		if err := c.settle(ctx, s.env, cp, sides, &cursor); err != nil {
			return err
		}
	}
	if err := n.join(ctx, s.env, cp, sides); err != nil {
		var redefined *errRedefined
		if why := n.changed(ctx, s.env, sides.source); errors.As(why, &redefined) { // what is compared with the target came since
			return why
		}
		return err
	}
	if err := armJoined(ctx, s.env, cp, sides); err != nil {
		return err
	}
	if err := joinAgain(ctx, s.env, cp, sides); err != nil { // from here on capture shows it
		return err
	}
	if c == nil {
		return nil
	}
	return c.unseen(ctx, s.env, sides.source)
}

// stopping names what of a captured table no rule carries. It comes first: a table that was renamed is
// new by name, and must not be taken for one that may be dropped.
func stopping(ctx context.Context, env *Env, source *pgx.Conn, n news) error {
	changes, err := capture.Check(ctx, source, env.Run, captured(env))
	if err != nil {
		return err
	}
	if err := leaving(env, changes); err != nil { // it went a moment ago
		return err
	}
	err = capture.Err(slices.DeleteFunc(slices.Clone(changes), func(c capture.Change) bool {
		return slices.ContainsFunc(n.left, func(t scope.Table) bool { return t.ID == c.ID })
	}))
	if err != nil {
		return err
	}
	inherits, err := heirs(ctx, source, heirsAmong(changes), false)
	if err != nil {
		return err
	}
	return inScope(env, inherits, n.tables...)
}

// reopen lets later steps that are done already act on what joined.
func (s *catchUpStep) reopen(ctx context.Context, c *comparison, n news) error {
	later := len(n.tables) > 0
	if c != nil {
		later = later || slices.ContainsFunc(c.differences, func(d difference) bool { return d.later })
	}
	if later {
		if err := s.env.Journal.Reopen(ctx, constraintsID, true, "definitions came that it makes"); err != nil {
			return err
		}
	}
	if len(n.tables) == 0 {
		return nil
	}
	return s.env.Journal.Reopen(ctx, verifyID, true, "tables joined the run")
}

// refusedRow reports whether a server refused a row for its value, or a statement of ours: a type or
// constraint may be another one than the source's by now, or a table of ours may be gone.
func refusedRow(err error) bool {
	state := pg.SQLState(err)
	return strings.HasPrefix(state, "22") || strings.HasPrefix(state, "23") || strings.HasPrefix(state, "42")
}

// explained gives what changed on the source instead of an error that only follows from it.
func (s *catchUpStep) explained(ctx context.Context, err error) error {
	if !refusedRow(err) {
		return err
	}
	why := s.look(ctx)
	var redefined *errRedefined
	var again *recopy
	var ddl *carry
	var told *engine.Error
	if errors.As(why, &redefined) || errors.As(why, &again) || errors.As(why, &ddl) || errors.As(why, &told) {
		return why
	}
	return err
}
