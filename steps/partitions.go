package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/failpoint"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/capture"
	"github.com/pgrunbook/pgrunbook/steps/internal/gate"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

const placeSQL = `
SELECT coalesce(n.nspname, ''), coalesce(p.relname, ''), coalesce(pg_get_expr(c.relpartbound, c.oid), ''), coalesce(pg_get_partkeydef(c.oid), '')
  FROM pg_class c
  LEFT JOIN pg_inherits h ON h.inhrelid = c.oid AND c.relispartition
  LEFT JOIN pg_class p ON p.oid = h.inhparent LEFT JOIN pg_namespace n ON n.oid = p.relnamespace
 WHERE c.oid = to_regclass($1)`

// placeOn gives the place that a relation has on a side; one that is no partition has no parent.
func placeOn(ctx context.Context, conn *pgx.Conn, member scope.Name) (at capture.Place, there bool, err error) {
	at.Member = member
	name := pg.Name(member.Schema, member.Name)
	err = conn.QueryRow(ctx, placeSQL, name).Scan(&at.Parent.Schema, &at.Parent.Name, &at.Bound, &at.PartKey)
	if errors.Is(err, pgx.ErrNoRows) {
		return at, false, nil
	}
	if err != nil {
		return at, false, fmt.Errorf("looking at %s on the target: %w", name, err)
	}
	return at, true, nil
}

// strayed makes a change to carry of a partition that came back to its own place where the target does not have it
// there: it was taken off its tree, by a run that saw it detached, and was attached again before its tree's capture
// had accepted that. Capture compares with what it accepted last, so that another load is all it asks for, which
// would go without the partition.
func strayed(ctx context.Context, env *Env, changes []capture.Change) error {
	back := func(c capture.Change) bool { return c.What == capture.PartitionMoved && c.Rule == capture.Recopy }
	if !slices.ContainsFunc(changes, back) {
		return nil
	}
	return env.Journal.Read(ctx, func(target *pgx.Conn) error {
		for i, c := range changes {
			if !back(c) {
				continue
			}
			for _, p := range c.Places {
				at, there, err := placeOn(ctx, target, p.Member)
				if err != nil {
					return err
				}
				if !there || at != p {
					changes[i].Rule = capture.Carry
				}
			}
		}
		return nil
	})
}

// clearPlaces drops on the target what has the name of a partition that is to be made and is another one: it hangs
// elsewhere, has other bounds, or is cut otherwise. All of them go before the first is made, since one may be in the
// way of another. Dropped, not moved: its rows are read again in any case, by the keys that its capture logs or by
// another load of its table.
func clearPlaces(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, changes []capture.Change) error {
	for _, c := range changes {
		for _, p := range c.Places {
			if err := clearPlace(ctx, env, cp, sides, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func clearPlace(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, p capture.Place) error {
	name := pg.Name(p.Member.Schema, p.Member.Name)
	at, there, err := placeOn(ctx, sides.target, p.Member)
	if err != nil || !there || at == p {
		return err
	}
	for _, t := range env.Scope.Tables {
		switch {
		case t.Name != p.Member:
		case t.Joined:
			return &errRedefined{name + " became a partition"} // it leaves first
		default:
			return &engine.Error{
				Class: engine.ClassStale, Op: "following", Object: name, Err: fmt.Errorf("it is a table of this run, and became a partition of %s", pg.Name(p.Parent.Schema, p.Parent.Name)),
				Hint: "Detach it on the source, and run the same command again. Or begin again with what is now: pgrunbook abort --drop-target, then pgrunbook plan and apply.",
			}
		}
	}
	ours, err := brought(ctx, env, sides.target, p.Member)
	if err != nil {
		return err
	}
	if !ours {
		return &engine.Error{
			Op: "carrying a change to the target", Object: name, Err: errors.New("another relation has its name there, which this run did not bring"),
			Hint: "Rename that one on the target, or drop it, then run the same command again: it makes the partition by " + p.SQL(),
		}
	}
	cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: name, Message: name + " has another place on the source now: dropped on the target, to be made again there"})
	if err := dropCarried(ctx, env, cp, sides, "DROP TABLE IF EXISTS "+name+" CASCADE", []scope.Name{p.Member}); err != nil {
		return err
	}
	failpoint.Hit("ddl.cleared")
	return nil
}

const broughtSQL = `
WITH RECURSIVE up (oid) AS (
  SELECT to_regclass($1)::oid UNION SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid)
SELECT EXISTS (SELECT FROM up JOIN unnest($2::text[]) t (name) ON to_regclass(t.name) = up.oid WHERE up.oid <> to_regclass($1))
    OR EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = to_regclass($1) AND g.tgname = $3)`

// brought reports whether a relation of the target is the run's: in the tree of one of its tables, or gated, as one
// is that was taken off its tree.
func brought(ctx context.Context, env *Env, target *pgx.Conn, rel scope.Name) (ours bool, err error) {
	var tables []scope.Name
	for _, t := range env.Scope.Tables {
		tables = append(tables, t.Name)
	}
	name := pg.Name(rel.Schema, rel.Name)
	if err := target.QueryRow(ctx, broughtSQL, name, quoted(tables), gate.Trigger).Scan(&ours); err != nil {
		return false, fmt.Errorf("looking at %s on the target: %w", name, err)
	}
	return ours, nil
}

// makePartitions makes on the target what is not there yet of a change's partitions.
func makePartitions(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, c capture.Change) error {
	for _, p := range c.Places {
		at, there, err := placeOn(ctx, sides.target, p.Member)
		if err != nil {
			return err
		}
		if there && at == p {
			cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: pg.Name(p.Member.Schema, p.Member.Name), Message: c.Text + ": the target has it in its place"})
			if err := nameIndexes(ctx, cp, sides, p.Member); err != nil {
				return err
			}
			continue
		}
		one := c
		one.SQL = p.SQL()
		err = carryChange(ctx, cp, sides, one)
		if pg.SQLState(err) == "23514" { // rows of the default partition, which the source's has no more
			room, roomErr := roomFor(ctx, env, sides, c.ID, p)
			if roomErr != nil {
				return roomErr
			}
			if room != "" {
				one.SQL = room + "; " + p.SQL()
				err = carryChange(ctx, cp, sides, one)
			}
		}
		if err == nil {
			err = givePartition(ctx, cp, sides, p)
		}
		if err == nil {
			err = nameIndexes(ctx, cp, sides, p.Member)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const ownerSQL = `
SELECT pg_get_userbyid(p.relowner)::text, p.relowner <> c.relowner FROM pg_class c, pg_class p WHERE c.oid = to_regclass($1) AND p.oid = to_regclass($2)`

// givePartition gives a partition that was made to the owner of what it hangs on.
func givePartition(ctx context.Context, cp engine.Checkpoint, sides *sideConns, p capture.Place) error {
	name, owner, other := pg.Name(p.Member.Schema, p.Member.Name), "", false
	if err := sides.target.QueryRow(ctx, ownerSQL, name, pg.Name(p.Parent.Schema, p.Parent.Name)).Scan(&owner, &other); err != nil || !other {
		return err
	}
	sql := "ALTER TABLE " + name + " OWNER TO " + pgx.Identifier{owner}.Sanitize()
	err := runOn(ctx, sides.target, p.Member, waiting(cp, engine.Target, "set an owner on the target"), sql)
	if pg.SQLState(err) == "42501" { // insufficient_privilege
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: name, Message: fmt.Sprintf("%s keeps our role as its owner on the target: %v", name, err), Hint: sql})
		return nil
	}
	return err
}

const attachedSQL = `
SELECT format('%I.%I', n.nspname, up.relname), x.relname
  FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_inherits h ON h.inhrelid = x.oid
  JOIN pg_class up ON up.oid = h.inhparent JOIN pg_namespace n ON n.oid = up.relnamespace
 WHERE i.indrelid = to_regclass($1)`

// attached gives a partition's indexes that belong to ones of its parent, by these.
func attached(ctx context.Context, conn *pgx.Conn, member scope.Name) (map[string]string, error) {
	rows, err := conn.Query(ctx, attachedSQL, pg.Name(member.Schema, member.Name))
	if err != nil {
		return nil, fmt.Errorf("looking at the indexes of %s: %w", pg.Name(member.Schema, member.Name), err)
	}
	list, of, name := map[string]string{}, "", ""
	_, err = pgx.ForEachRow(rows, []any{&of, &name}, func() error { list[of] = name; return nil })
	if err != nil {
		return nil, fmt.Errorf("looking at the indexes of %s: %w", pg.Name(member.Schema, member.Name), err)
	}
	return list, nil
}

// nameIndexes gives the indexes that came with a partition the names that they have on the source: those that the target
// made up may be another table's there, one that was detached and renamed.
func nameIndexes(ctx context.Context, cp engine.Checkpoint, sides *sideConns, member scope.Name) error {
	want, err := attached(ctx, sides.source, member)
	if err != nil {
		return err
	}
	have, err := attached(ctx, sides.target, member)
	if err != nil {
		return err
	}
	for _, of := range slices.Sorted(maps.Keys(have)) {
		if want[of] == "" || want[of] == have[of] {
			continue
		}
		index := scope.Name{Schema: member.Schema, Name: have[of]}
		sql := "ALTER INDEX " + pg.Name(index.Schema, index.Name) + " RENAME TO " + pgx.Identifier{want[of]}.Sanitize()
		err := runOn(ctx, sides.target, index, waiting(cp, engine.Target, "rename an index on the target"), sql, member)
		if err != nil && pg.SQLState(err) != "42P07" { // taken: a name is all that differs
			return fmt.Errorf("%s on the target: %w", sql, err)
		}
	}
	return nil
}

const (
	boundSQL   = `SELECT coalesce(pg_get_partition_constraintdef(to_regclass($1)), '')`
	defaultSQL = `SELECT d.oid::regclass::text FROM pg_partitioned_table p JOIN pg_class d ON d.oid = (to_jsonb(p) ->> 'partdefid')::oid WHERE p.partrelid = to_regclass($1)` // from 11 on
)

// defaultOn gives the default partition of a table on the target, quoted.
func defaultOn(ctx context.Context, target *pgx.Conn, parent scope.Name) (name string, found bool, err error) {
	err = target.QueryRow(ctx, defaultSQL, pg.Name(parent.Schema, parent.Name)).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("looking for the default partition of %s on the target: %w", pg.Name(parent.Schema, parent.Name), err)
	}
	return name, true, nil
}

// roomFor gives the statement that takes out of a default partition on the target what belongs into a new one. The
// source's had to lose these rows before: their keys are captured, and passes bring them as they are by now. Of a table
// without a key only whole rows are captured, each for a row that is there: it has no such statement.
func roomFor(ctx context.Context, env *Env, sides *sideConns, id int32, p capture.Place) (string, error) {
	keyed := func(t scope.Table) bool { return t.ID == id && t.Identity == scope.ByKey }
	if !slices.ContainsFunc(env.Scope.Tables, keyed) {
		return "", nil
	}
	def, found, err := defaultOn(ctx, sides.target, p.Parent)
	if err != nil || !found {
		return "", err
	}
	var bound string
	name := pg.Name(p.Member.Schema, p.Member.Name)
	if err := sides.source.QueryRow(ctx, boundSQL, name).Scan(&bound); err != nil {
		return "", fmt.Errorf("reading the bounds of %s: %w", name, err)
	}
	if bound == "" { // it is gone again
		return "", nil
	}
	return "DELETE FROM " + def + " WHERE " + bound, nil
}

// detachRemoved takes partitions off their trees on the target that the source's trees have lost: they would take rows
// there that the source refuses, stand in the way of others, and a key that comes after the rows would not be valid
// with one that has none. What has the name of a partition that is made now is clearPlaces'.
func detachRemoved(ctx context.Context, cp engine.Checkpoint, sides *sideConns, changes []capture.Change) error {
	for _, c := range changes {
		again := func(o capture.Change) bool { return o.What == capture.PartitionAdded && o.Member == c.Member }
		if c.What != capture.PartitionRemoved || slices.ContainsFunc(changes, again) {
			continue
		}
		in, err := inTree(ctx, sides.target, c.Member, c.Table)
		if err != nil {
			return err
		}
		if !in {
			continue
		}
		detached, err := detach(ctx, cp, sides, c.Member)
		if err != nil {
			return err
		}
		if detached {
			name := pg.Name(c.Member.Schema, c.Member.Name)
			cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: name, Message: name + " was detached on the target and is empty there: drop it where the source has none"})
		}
	}
	return nil
}

const inTreeSQL = `
WITH RECURSIVE up (oid) AS (
  SELECT to_regclass($1)::oid UNION SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid)
SELECT EXISTS (SELECT FROM up WHERE oid = to_regclass($2) AND oid <> to_regclass($1))`

// inTree reports whether a table is, on the target, a partition of another one or of one of its partitions.
func inTree(ctx context.Context, target *pgx.Conn, member, root scope.Name) (in bool, err error) {
	name := pg.Name(member.Schema, member.Name)
	if err := target.QueryRow(ctx, inTreeSQL, name, pg.Name(root.Schema, root.Name)).Scan(&in); err != nil {
		return false, fmt.Errorf("looking for %s on the target: %w", name, err)
	}
	return in, nil
}

// dropPartitions drops partitions on the target that were dropped on the source, so that others may
// take their place there; with replaced, also where the source has another table of that name, which
// is made afterwards. Their table is loaded again.
func dropPartitions(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns, changes []capture.Change, replaced bool) error {
	for _, c := range changes {
		if c.What != capture.PartitionRemoved || env.Runbook.Schema.OnDDL != "carry" {
			continue
		}
		name := pg.Name(c.Member.Schema, c.Member.Name)
		var detached, again, there bool
		var err error
		if err = sides.source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1), to_regclass($2) IS NOT NULL", c.OID, name).Scan(&detached, &again); err != nil {
			return fmt.Errorf("looking for %s: %w", name, err)
		}
		if there, err = inTree(ctx, sides.target, c.Member, c.Table); err != nil { // an earlier run may have made what has its name now
			return err
		}
		if detached || !there || again && !replaced {
			continue
		}
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: name, Message: name + " was dropped on the source: dropped on the target too"})
		if err := dropCarried(ctx, env, cp, sides, "DROP TABLE IF EXISTS "+name+" CASCADE", []scope.Name{c.Member}); err != nil {
			return err
		}
	}
	return nil
}
