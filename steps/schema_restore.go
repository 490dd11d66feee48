package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
)

// definitions dumps and restores. Where a restore was begun and not finished, what it made is dropped
// first: the cursor says what the target held before.
func (s *schemaStep) definitions(ctx context.Context, sides *sideConns, c *schemaCursor, cp engine.Checkpoint, roles *roleMap) error {
	if !c.Begun {
		var err error
		if c.Present, err = dump.ReadPresent(ctx, sides.target); err != nil {
			return err
		}
	}
	a, o, err := s.archive(ctx, sides, roles, c.Present)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	for _, w := range a.Warnings {
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warning", Message: w})
	}
	failpoint.Hit("schema.dumped")
	if !c.Restored {
		if err := s.dumped(ctx, sides.source, c, cp); err != nil {
			return err
		}
		if err := s.restorePre(ctx, sides, a, o, c, cp); err != nil {
			return err
		}
	}
	if roles.mapped {
		err := dump.SetOwners(ctx, sides.source, sides.target, a.Pre, roles.rename, waiting(cp, engine.Target, "set an owner on the target"))
		if err == nil {
			err = dump.SetGrants(ctx, sides.source, sides.target, slices.Concat(a.Kept, a.Pre), roles.rename)
		}
		if err != nil {
			return &engine.Error{Op: "setting owners and rights on the target", Err: err, Hint: "The target's role must be a member of every owner, or map owners with schema { owners = { ... } }."}
		}
		if err := dump.SetDefaultPrivileges(ctx, sides.source, sides.target, roles.rename); err != nil {
			return err
		}
	}
	failpoint.Hit("schema.recorded")
	c.Owned = true
	return cp.Save(ctx, nil, c)
}

// dumped records what came between the reading of the definitions and the end of the dump, which may have it: a process that
// died before its dump may be followed by one much later. Should the source drop it, it is known as what the restore made.
func (s *schemaStep) dumped(ctx context.Context, source *pgx.Conn, c *schemaCursor, cp engine.Checkpoint) error {
	items, err := dump.Inventory(ctx, source, s.env.Scope)
	if err != nil {
		return sided(engine.Source, err)
	}
	came := false
	for id, i := range items {
		if c.Definitions[id] == "" && !i.Kind.AfterRows() {
			c.Definitions[id], came = begun, true
		}
	}
	if !came {
		return nil
	}
	return cp.Save(ctx, nil, c)
}

func (s *schemaStep) restorePre(ctx context.Context, sides *sideConns, a *dump.Archive, o dump.RestoreOptions, c *schemaCursor, cp engine.Checkpoint) error {
	again := c.Begun
	if !again {
		before, err := s.empty(ctx, sides.target)
		if err != nil {
			return err
		}
		c.Before, c.Begun = before, true
		if err := cp.Save(ctx, nil, c); err != nil {
			return err
		}
	}
	failpoint.Hit("schema.begun")
	if again {
		now, err := dump.Objects(ctx, sides.target)
		if err != nil {
			return err
		}
		if err := dump.DropMade(ctx, sides.target, dump.NewSince(c.Before, now), waiting(cp, engine.Target, "drop what a dead process had restored")); err != nil {
			return err
		}
	}
	cp.Emit(engine.Event{Kind: engine.EventProgress, Message: fmt.Sprintf("restoring %d definitions", len(a.Pre))})
	if err := a.Restore(ctx, s.env.Target, a.Pre, o); err != nil {
		return s.takenBack(ctx, sides, c, cp, err)
	}
	failpoint.Hit("schema.restored")
	now, err := dump.Objects(ctx, sides.target)
	if err != nil {
		return err
	}
	c.Made, c.Restored = dump.NewSince(c.Before, now), true
	return cp.Save(ctx, nil, c)
}

// takenBack drops what a restore that failed has made, at once: what a person then makes on the target, to
// mend the cause, would be taken for it.
func (s *schemaStep) takenBack(ctx context.Context, sides *sideConns, c *schemaCursor, cp engine.Checkpoint, why error) error {
	if ctx.Err() != nil || !dump.Refused(why) {
		return why // it may have committed
	}
	now, err := dump.Objects(ctx, sides.target)
	if err == nil {
		err = dump.DropMade(ctx, sides.target, dump.NewSince(c.Before, now), waiting(cp, engine.Target, "drop what a restore that failed had made"))
	}
	if err != nil {
		return why // the same command does it
	}
	c.Before, c.Begun = nil, false
	return errors.Join(why, cp.Save(ctx, nil, c))
}

// empty refuses a target that already has a table of the scope, and gives what else it holds.
func (s *schemaStep) empty(ctx context.Context, target *pgx.Conn) ([]dump.Made, error) {
	before, err := dump.Objects(ctx, target)
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, m := range before {
		have[m.Identity] = true
	}
	for _, t := range s.env.Scope.Tables {
		var there bool
		if err := target.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", pg.Name(t.Schema, t.Name.Name)).Scan(&there); err != nil {
			return nil, fmt.Errorf("looking at the target: %w", err)
		}
		if there {
			return nil, &engine.Error{
				Class: engine.ClassPreflight, Op: "restoring into the target", Object: t.Display(),
				Err:  fmt.Errorf("the target already has this table (%d objects are there)", len(have)),
				Hint: "Use an empty database, or keep what is there: schema { mode = \"existing\" }.",
			}
		}
	}
	return before, nil
}

// archive dumps the source and chooses how it is restored into a target that had what is in present.
func (s *schemaStep) archive(ctx context.Context, sides *sideConns, roles *roleMap, present dump.Present) (*dump.Archive, dump.RestoreOptions, error) {
	o := dump.RestoreOptions{Mark: s.env.Run.Mark, NoOwner: roles.mapped}
	sourceMajor, err := pg.Version(ctx, sides.source)
	if err != nil {
		return nil, o, err
	}
	targetMajor, err := pg.Version(ctx, sides.target)
	if err != nil {
		return nil, o, err
	}
	o.TargetMajor = targetMajor / 10000
	tools, err := dump.Find(ctx, sourceMajor/10000, o.TargetMajor)
	if err != nil {
		return nil, o, err
	}
	a, err := dump.Dump(ctx, tools, s.env.Source, dump.Options{Scope: s.env.Scope, Mark: s.env.Run.Mark})
	if err != nil {
		return nil, o, err
	}
	if err = a.Keep(ctx, sides.source, sides.target, present); err == nil {
		o.OneTx, err = dump.FitsOneTransaction(ctx, sides.target, len(a.Pre))
	}
	if err == nil {
		o.NoTablespaces, err = dump.LacksTablespaces(ctx, sides.source, sides.target)
	}
	if err != nil {
		_ = a.Close()
		return nil, o, err
	}
	return a, o, nil
}
