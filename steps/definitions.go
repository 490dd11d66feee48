package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// comparison is what of the source's definitions changed since the structure was restored and is
// not on the target.
type comparison struct {
	fresh          []scope.Table // as the patterns find them on the source now
	source, target map[string]dump.Item
	differences    []difference
	empty          bool // nothing is captured or loaded yet
	keys           *keyPairs
	was            map[string]string
}

// difference is one definition that changed on the source since the structure was restored.
type difference struct {
	item      dump.Item  // the source's; of what was dropped, the target's
	verb      string     // "is new", "changed", "was dropped"
	sql       []string   // what makes the target alike
	ran       int        // how many of them did
	restore   bool       // made from a dump of the source
	later     bool       // made with what comes after the rows
	atFlip    bool       // made by the statements at the opening: see dump.FlipStatements
	elsewhere bool       // capture.Check tells it
	mild      bool       // no row and no later statement depends on it: named, not stopped for
	made      *madeTable // the table, where this run made it and it is not part of it: see dropMade
	key       *keyPair   // what passes find rows by, and it is exchanged
	why       string     // why it cannot be carried
}

func (d difference) text() string {
	t := d.item.ID() + " " + d.verb + " on the source"
	if d.why != "" {
		t += " (" + d.why + ")"
	}
	return t
}

func (d difference) carried() bool { return len(d.sql) > 0 || d.restore || d.later || d.atFlip }

func (d difference) finding() *engine.Finding {
	f := &engine.Finding{Code: "RUN012", Severity: engine.SeverityWarning, Side: engine.Source, Object: d.item.ID(), Text: d.text() + " and is not carried", Fix: "Make the same change on the target if it is wanted there."}
	if d.verb == "was dropped" {
		f.Text, f.Fix = d.text()+" and is still on the target", "Drop it there if nothing needs it."
	}
	return f
}

// compareDefinitions looks at every definition of both sides. It is nil where the run has no record
// of what the source was like: without a schema phase nobody asked for its structure. Definitions
// that carried has as they are now were carried already, by statements that another server may
// write down in other words.
func compareDefinitions(ctx context.Context, env *Env, sides *sideConns, carried catchUpCursor) (*comparison, error) {
	was, err := restoredDefinitions(ctx, env)
	if err != nil || was == nil {
		return nil, err
	}
	c := &comparison{}
	return c, c.read(ctx, env, sides, was, carried)
}

func (c *comparison) read(ctx context.Context, env *Env, sides *sideConns, was map[string]string, carried catchUpCursor) (err error) {
	handled := carried.Handled
	maps.Copy(was, handled)
	c.was = was
	if c.fresh, c.source, err = readDefinitions(ctx, env, sides.source); err != nil {
		return err
	}
	if c.target, err = dump.Inventory(ctx, sides.target, nil); err != nil {
		return sided(engine.Target, err)
	}
	if c.keys, err = readKeys(ctx, env, sides, was); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(c.source)) {
		i := c.source[id]
		known, missing := was[id] != "", c.target[id].Kind == ""
		awaited := missing && i.Kind.AfterRows() && handled[id] != "" // nothing has made it so far
		// One that went under another name, as a partition that had been detached, or with an identity, is still known.
		lacking := missing && slices.Contains([]dump.ItemKind{dump.ItemTable, dump.ItemPartition, dump.ItemSequence}, i.Kind) && env.Runbook.Schema.Mode != "existing"
		inTheWay := i.NotValid && !missing && env.Runbook.Schema.Mode != "existing" // as a first cutover leaves it
		key := c.keys.wanted[id]
		if !awaited && !lacking && !inTheWay && (key == nil || !missing) && (dump.Unchanged(was, i) || c.target[id].Def == i.Def && !ownWords(i.Kind)) {
			continue
		}
		if !known && ownWords(i.Kind) {
			continue // of an object that is new itself
		}
		d := difference{item: i, verb: "changed"}
		if !known || missing {
			d.verb = "is new"
		}
		if d.key = key; key != nil {
			err = key.remedy(ctx, env, sides, c, &d)
		} else {
			err = c.remedy(ctx, env, sides, &d, c.target[id])
		}
		if err != nil {
			return err
		}
		if !d.elsewhere {
			c.differences = append(c.differences, d)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(was)) {
		_, there := c.source[id]
		i, left := c.target[id]
		if !left || there || was[id] == gone || ownWords(i.Kind) || i.Kind == dump.ItemComment || c.keys.goes[id] {
			continue
		}
		t := owningTable(env, c.fresh, i.Name)
		if t != nil && t.Data == scope.Live && i.Kind == dump.ItemTable {
			continue
		}
		d := dropped(env, i)
		if c.keys.stand[id] {
			d.sql, d.mild = nil, true // passes find rows by it; whether the source may lose it, capture says
		} else if err := c.unreferenced(ctx, env, sides.target, &d); err != nil {
			return err
		}
		if i.Kind == dump.ItemSequence {
			if err := sides.target.QueryRow(ctx, inUseSQL, i.OID).Scan(&d.mild); err != nil {
				return fmt.Errorf("looking for what uses %s on the target: %w", i.ID(), err)
			}
		}
		if t == nil && i.Kind == dump.ItemTable {
			if d.made, err = ours(ctx, sides.target, i, carried.Made); err != nil {
				return err
			}
		}
		if d.made != nil {
			d.mild, d.sql = false, []string{"DROP " + d.made.kind + " " + i.Name + " CASCADE"}
		}
		c.differences = append(c.differences, d)
	}
	return nil
}

// gone is what handled has of a definition that was dropped on both sides, or may stay.
const gone = "gone"

// ownWords are kinds that differ between servers without meaning: owners are mapped, versions of
// extensions are the server's.
func ownWords(k dump.ItemKind) bool {
	return slices.Contains([]dump.ItemKind{dump.ItemOwner, dump.ItemGrant, dump.ItemExtension, dump.ItemSetting, dump.ItemOption}, k)
}

// restoredDefinitions are the source's as the schema phase found them.
func restoredDefinitions(ctx context.Context, env *Env) (map[string]string, error) {
	var c schemaCursor
	if _, err := env.Journal.Checkpoint("schema", env.Sink).Load(ctx, &c); err != nil {
		return nil, err
	}
	return c.Definitions, nil
}

// readDefinitions reads those of the source that the runbook's patterns cover now. What is excluded
// is told to the scope: a table that was made since the plan may be excluded as well.
func readDefinitions(ctx context.Context, env *Env, source *pgx.Conn) ([]scope.Table, map[string]dump.Item, error) {
	sums, err := readSums(ctx, env, source)
	if err != nil {
		return nil, nil, err
	}
	list, err := readWatched(ctx, env, source)
	if err != nil {
		return nil, nil, err
	}
	fresh, _, err := scope.Resolve(ctx, scope.Input{Source: source, Runbook: env.Runbook})
	if err != nil {
		return nil, nil, err
	}
	env.Scope.ExcludedTables, env.Scope.ExcludedSchemas = fresh.ExcludedTables, fresh.ExcludedSchemas
	fresh.Helpers = env.Scope.Helpers // an older build's plan has none: it carried them
	items, err := dump.Inventory(ctx, source, fresh)
	if err != nil {
		return nil, nil, sided(engine.Source, err)
	}
	env.watch.compared(sums, list, dump.Fingerprint(items))
	return fresh.Tables, items, nil
}

// hasOn reports whether the target has the relation or domain of that name.
func (c *comparison) hasOn(name string) bool {
	return slices.ContainsFunc([]dump.ItemKind{dump.ItemTable, dump.ItemPartition, dump.ItemView, dump.ItemMatview, dump.ItemDomain}, func(k dump.ItemKind) bool {
		_, there := c.target[dump.Item{Kind: k, Name: name}.ID()]
		return there
	})
}

// remedy decides what is done about a definition that is new or changed.
func (c *comparison) remedy(ctx context.Context, env *Env, sides *sideConns, d *difference, target dump.Item) (err error) {
	i, missing := d.item, target.Kind == ""
	if missing && i.On != "" && !i.Kind.AfterRows() && !c.hasOn(i.On) {
		d.elsewhere = true // it comes with what it is on
		return nil
	}
	switch i.Kind {
	case dump.ItemEnum:
		if missing {
			d.restore = true
			return nil
		}
		return enumRemedy(ctx, sides, d, target)
	case dump.ItemComment, dump.ItemOwner, dump.ItemGrant, dump.ItemOption, dump.ItemSetting, dump.ItemExtension:
		d.mild, d.restore = true, i.Kind == dump.ItemExtension && missing
		return nil
	case dump.ItemTable, dump.ItemPartition:
		return c.tableRemedy(ctx, env, sides, d, missing)
	case dump.ItemCheck, dump.ItemDomainCheck:
		if i.NotValid { // rows that break it may be on their way, or be read again
			if d.atFlip = true; !missing {
				d.verb, d.sql = "is NOT VALID", []string{dump.Drop(i)}
			}
			return nil
		}
		sql, err := dump.Define(ctx, sides.source, i)
		if err != nil {
			return err
		}
		if !missing {
			d.sql = append(d.sql, dump.Drop(i))
		}
		d.sql = append(d.sql, sql)
		return nil
	case dump.ItemMatview:
		d.restore, d.mild = missing, !missing
		return nil
	case dump.ItemSequence:
		if missing {
			if d.elsewhere, err = c.ofIdentity(ctx, env, sides.source, i.OID); err != nil || d.elsewhere {
				return err
			}
		}
		return plainRemedy(ctx, env, sides, d, missing)
	default:
		return plainRemedy(ctx, env, sides, d, missing)
	}
}

// plainRemedy is for kinds that are made whole: by pg_restore, with what comes after the rows, or by a
// statement that replaces.
func plainRemedy(ctx context.Context, env *Env, sides *sideConns, d *difference, missing bool) error {
	switch {
	case d.item.Kind.AfterRows():
		d.later = true
		if !missing && d.verb == "changed" && env.Runbook.Schema.Mode != "existing" { // there nothing makes it again
			d.sql = []string{dump.Drop(d.item)}
		}
	case missing:
		d.restore = true
	default:
		sql, err := dump.Define(ctx, sides.source, d.item)
		if err != nil {
			return err
		}
		if sql == "" {
			d.why = "no statement makes the one of the other"
			return nil
		}
		d.sql = []string{sql}
	}
	return nil
}

func enumRemedy(ctx context.Context, sides *sideConns, d *difference, target dump.Item) error {
	want, err := dump.ReadLabels(ctx, sides.source, d.item.OID)
	if err != nil {
		return err
	}
	have, err := dump.ReadLabels(ctx, sides.target, target.OID)
	if err != nil {
		return err
	}
	if d.sql, err = dump.Labels(d.item.Name, want, have); err != nil {
		d.why = err.Error()
	}
	return nil
}

// tableRemedy leaves captured tables and their partitions to capture.Check, which sees each column.
func (c *comparison) tableRemedy(ctx context.Context, env *Env, sides *sideConns, d *difference, missing bool) (err error) {
	t := owningTable(env, c.fresh, d.item.Name)
	switch {
	case t != nil && t.Data == scope.Live && !c.empty:
		d.elsewhere = true
	case t == nil && missing && d.item.Kind == dump.ItemTable && c.hasOn(d.item.Name):
		d.elsewhere = true // it was detached, and hangs on its tree there: see prepareNew
	case t == nil && d.item.Kind == dump.ItemPartition && c.follows(env, d.item.Name):
		d.elsewhere = c.hasOn(d.item.Name)
		if !d.elsewhere {
			d.elsewhere, err = c.astray(ctx, sides, d.item)
		}
		d.restore = !d.elsewhere
		return err
	case t != nil && d.item.Kind == dump.ItemTable && !missing:
		sql, err := alterEmpty(ctx, env, sides, *t)
		if err != nil {
			return err
		}
		d.sql = sql
		if len(sql) == 0 {
			d.why = "no statement makes the one of the other"
		}
	case d.item.Kind == dump.ItemPartition && t != nil && missing:
		sql, err := dump.Define(ctx, sides.source, d.item)
		d.sql = []string{sql}
		return err
	case missing:
		d.restore = true
	default:
		d.why = "no statement makes the one of the other"
	}
	return nil
}

// owningTable is the scope's table of that name, or the one whose partition it is. What left a tree since the scope's
// partitions were read is a table of its own among those that the source has by now (fresh), and nobody's.
func owningTable(env *Env, fresh []scope.Table, quoted string) *scope.Table {
	named := func(t scope.Table) bool { return pg.Name(t.Schema, t.Name.Name) == quoted }
	if i := slices.IndexFunc(env.Scope.Tables, named); i >= 0 {
		return &env.Scope.Tables[i]
	}
	if slices.ContainsFunc(fresh, named) {
		return nil
	}
	for i := range env.Scope.Tables {
		t := &env.Scope.Tables[i]
		if slices.ContainsFunc(t.Members, func(m scope.Member) bool { return pg.Name(m.Schema, m.Name.Name) == quoted }) {
			return t
		}
	}
	return nil
}

// follows reports whether a partition of the source is by now in a tree of the run.
func (c *comparison) follows(env *Env, quoted string) bool {
	return slices.ContainsFunc(c.fresh, func(f scope.Table) bool {
		return slices.ContainsFunc(f.Members, func(m scope.Member) bool { return pg.Name(m.Schema, m.Name.Name) == quoted }) &&
			slices.ContainsFunc(env.Scope.Tables, func(t scope.Table) bool { return t.Name == f.Name && t.Data == scope.Live })
	})
}

// astray reports whether a new partition cannot just be restored: what it hangs on is not on the target and does not come
// with it, or is another one there, or has other columns so far, or has a default partition, which may hold rows of the
// new one still.
func (c *comparison) astray(ctx context.Context, sides *sideConns, i dump.Item) (bool, error) {
	var parent scope.Name
	err := sides.source.QueryRow(ctx, parentSQL, i.Name).Scan(&parent.Schema, &parent.Name)
	if errors.Is(err, pgx.ErrNoRows) {
		return true, nil // it is gone again
	}
	if err != nil {
		return false, fmt.Errorf("looking at %s: %w", i.Name, err)
	}
	id := dump.Item{Kind: dump.ItemPartition, Name: pg.Name(parent.Schema, parent.Name)}.ID()
	if up, nested := c.source[id]; nested && c.target[id].Def != up.Def {
		if c.hasOn(up.Name) {
			return true, nil
		}
		return c.astray(ctx, sides, up) // restored as well, or not
	}
	if _, found, err := defaultOn(ctx, sides.target, parent); err != nil || found {
		return found, err
	}
	same, err := sameColumns(ctx, sides, parent)
	return !same, err
}

// dropped decides what is done about a definition that only the target still has.
func dropped(env *Env, i dump.Item) difference {
	d := difference{item: i, verb: "was dropped"}
	if sql := dump.Drop(i); sql != "" {
		d.sql = []string{sql}
		return d
	}
	if t := owningTable(env, nil, i.Name); t != nil && i.Kind == dump.ItemTable && t.Data != scope.Live {
		d.why = "its rows are to be carried"
		return d
	}
	d.mild = true
	return d
}
