package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// keyPair is what passes find a table's rows by on the target, and what the source has for it.
type keyPair struct {
	table scope.Table
	want  dump.KeyIndex  // the source's
	have  *dump.KeyIndex // the target's; nil: none so far
	stand []dump.KeyIndex
}

// keyPairs are those of all tables.
type keyPairs struct {
	byTable map[scope.Name]*keyPair
	wanted  map[string]*keyPair // by the names of the source's
	stand   map[string]bool     // the names of the target's
	beside  map[string]uint32   // what has the same columns there, by name
	goes    map[string]bool     // what goes from the target for another one
}

// readKeys pairs the keys of both sides by their columns: their names are the application's to change.
func readKeys(ctx context.Context, env *Env, sides *sideConns, was map[string]string) (*keyPairs, error) {
	source, err := dump.KeyIndexes(ctx, sides.source, env.Scope.Tables)
	if err != nil {
		return nil, err
	}
	target, err := dump.KeyIndexes(ctx, sides.target, env.Scope.Tables)
	if err != nil {
		return nil, err
	}
	all := &keyPairs{byTable: map[scope.Name]*keyPair{}, wanted: map[string]*keyPair{}, stand: map[string]bool{}, beside: map[string]uint32{}, goes: map[string]bool{}}
	for _, t := range env.Scope.Tables {
		name := pg.Name(t.Schema, t.Name.Name)
		if t.Key == nil {
			continue
		}
		if len(source[name]) == 0 { // package capture stops the run for that
			for _, k := range target[name] {
				all.stand[k.Item().ID()] = true
			}
			continue
		}
		for _, k := range target[name] {
			all.beside[k.Item().ID()] = k.OID
		}
		p := &keyPair{table: t, want: wantedKey(t, source[name], target[name]), stand: target[name]}
		all.byTable[t.Name] = p
		if p.have = p.among(source[name], was); p.have == nil {
			continue
		}
		all.stand[p.have.Item().ID()] = true
		// What somebody else made there under a name of their own stays.
		if id := p.want.Item().ID(); env.Runbook.Schema.Mode != "existing" || p.have.Item().ID() == id {
			all.wanted[id] = p
		}
	}
	return all, nil
}

// wantedKey is the source's index by which the run knows the key, or another one that the target has, or the best of all.
func wantedKey(t scope.Table, source, target []dump.KeyIndex) dump.KeyIndex {
	if at := slices.IndexFunc(source, func(k dump.KeyIndex) bool { return k.Index == t.Key.Index && k.Constraint == t.Key.Constraint }); at >= 0 {
		return source[at]
	}
	if at := slices.IndexFunc(source, func(k dump.KeyIndex) bool { return sameItem(target, k) >= 0 }); at >= 0 {
		return source[at]
	}
	return source[0]
}

// among finds the one on the target: of the same name, or one of ours that the source has not any more. A table has one primary
// key, whosever.
func (p *keyPair) among(source []dump.KeyIndex, was map[string]string) *dump.KeyIndex {
	at := sameItem(p.stand, p.want)
	if at < 0 {
		at = slices.IndexFunc(p.stand, func(k dump.KeyIndex) bool {
			return sameItem(source, k) < 0 && (isOurs(was, k.Item()) || k.Primary && p.want.Primary)
		})
	}
	if at < 0 {
		return nil
	}
	return &p.stand[at]
}

func sameItem(list []dump.KeyIndex, k dump.KeyIndex) int {
	return slices.IndexFunc(list, func(o dump.KeyIndex) bool { return o.Item().ID() == k.Item().ID() })
}

// gone are the target's that go: the one that is exchanged, and what has its new name and is another one, as an index whose
// constraint could not be made.
func (p *keyPair) gone() []dump.KeyIndex {
	return slices.DeleteFunc(slices.Clone(p.stand), func(k dump.KeyIndex) bool { return k.OID != p.have.OID && k.Index != p.want.Index })
}

// remedy exchanges the target's for the source's in one transaction: passes are never without. Where only the name is
// another one it is renamed.
func (p *keyPair) remedy(ctx context.Context, env *Env, sides *sideConns, c *comparison, d *difference) error {
	d.later = true // foreign keys to it, which go with it, are made with what comes after the rows
	drops := p.gone()
	for _, k := range drops {
		c.keys.goes[k.Item().ID()] = k.Item().ID() != d.item.ID()
	}
	if renamed := p.renamed(); renamed != "" {
		drops = slices.DeleteFunc(drops, func(k dump.KeyIndex) bool { return k.OID == p.have.OID })
		d.sql = append(dropAll(drops), renamed)
	} else {
		t := p.table
		t.Key = p.key()
		made, err := dump.KeySQL(ctx, sides.source, env.Scope, t)
		if err != nil {
			return err
		}
		var oids []uint32
		for _, k := range drops {
			oids = append(oids, k.OID)
		}
		if d.sql, err = c.references(ctx, env, sides.target, oids); err != nil {
			return err
		}
		d.sql = slices.Concat(d.sql, dropAll(drops), made)
	}
	if p.want.Root { // a partition that one side alone has would leave it invalid
		d.sql = append(d.sql, fmt.Sprintf("DO $pgrunbook$ BEGIN IF NOT (SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass) THEN RAISE 'the key of %s would lack a partition' USING ERRCODE = 'undefined_object'; END IF; END $pgrunbook$",
			pg.Literal(pg.Name(p.want.Index.Schema, p.want.Index.Name)), strings.ReplaceAll(strings.ReplaceAll(p.want.Table, "'", "''"), "%", "%%")))
	}
	d.sql = []string{strings.Join(d.sql, "; ")} // one message is one transaction
	return nil
}

// key is the scope's by the source's names.
func (p *keyPair) key() *scope.Key {
	k := *p.table.Key
	k.Index, k.Constraint, k.Primary = p.want.Index, p.want.Constraint, p.want.Primary
	return &k
}

// renamed gives the statement where the name is all that differs; in a tree the partitions' may as well.
func (p *keyPair) renamed() string {
	to := pgx.Identifier{p.want.Index.Name}.Sanitize()
	switch {
	case p.have.Like != p.want.Like || p.have.Index == p.want.Index || p.want.Root:
		return ""
	case p.have.Constraint != "":
		return fmt.Sprintf("ALTER TABLE %s RENAME CONSTRAINT %s TO %s", p.want.Table, pgx.Identifier{p.have.Constraint}.Sanitize(), to)
	}
	return fmt.Sprintf("ALTER INDEX %s RENAME TO %s", pg.Name(p.have.Index.Schema, p.have.Index.Name), to)
}

func dropAll(keys []dump.KeyIndex) []string {
	var out []string
	for _, k := range keys {
		out = append(out, dump.Drop(k.Item()))
	}
	return out
}

const referencesSQL = `
SELECT DISTINCT '"' || replace(k.conname, '"', '""') || '"', '"' || replace(n.nspname, '"', '""') || '"."' || replace(r.relname, '"', '""') || '"'
  FROM pg_constraint k JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
 WHERE k.contype = 'f' AND k.conindid = ANY ($1::oid[])`

// isOurs reports whether this run had made a definition on the target, and it was not dropped on both sides since.
func isOurs(was map[string]string, i dump.Item) bool { return was[i.ID()] != "" && was[i.ID()] != gone }

// unreferenced lets an index go that has a key's columns and that the source has not any more: foreign keys may need it on
// the target that need another one on the source.
func (c *comparison) unreferenced(ctx context.Context, env *Env, target *pgx.Conn, d *difference) error {
	oid, beside := c.keys.beside[d.item.ID()]
	if !beside || len(d.sql) == 0 {
		return nil
	}
	drops, err := c.references(ctx, env, target, []uint32{oid})
	if err == nil && len(drops) > 0 {
		d.sql, d.later = []string{strings.Join(append(drops, d.sql...), "; ")}, true
	}
	return err
}

// references drops the foreign keys that need what goes. One that the source does not have is a person's, and in the way;
// so is any on a target that a person made, for which nothing makes them again.
func (c *comparison) references(ctx context.Context, env *Env, target *pgx.Conn, oids []uint32) ([]string, error) {
	if env.Runbook.Schema.Mode == "existing" {
		return nil, nil
	}
	rows, err := target.Query(ctx, referencesSQL, oids)
	if err != nil {
		return nil, fmt.Errorf("looking for foreign keys on the target: %w", err)
	}
	var out []string
	i := dump.Item{Kind: dump.ItemForeignKey}
	_, err = pgx.ForEachRow(rows, []any{&i.Name, &i.On}, func() error {
		if _, there := c.source[i.ID()]; there || isOurs(c.was, i) {
			out = append(out, dump.Drop(i))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for foreign keys on the target: %w", err)
	}
	return out, nil
}

// rekey lets the run know its keys by the names that the source has for them now.
func (c *comparison) rekey(ctx context.Context, env *Env) error {
	return rekey(ctx, env, func(t scope.Table) *scope.Key {
		if p := c.keys.byTable[t.Name]; p != nil {
			return p.key()
		}
		return nil
	})
}

// noteKeys does so before anything is made from what the source has.
func noteKeys(ctx context.Context, env *Env, source *pgx.Conn) error {
	all, err := dump.KeyIndexes(ctx, source, env.Scope.Tables)
	if err != nil {
		return err
	}
	return rekey(ctx, env, func(t scope.Table) *scope.Key {
		list := all[pg.Name(t.Schema, t.Name.Name)]
		if len(list) == 0 {
			return nil
		}
		p := keyPair{table: t, want: wantedKey(t, list, nil)}
		return p.key()
	})
}

func rekey(ctx context.Context, env *Env, now func(scope.Table) *scope.Key) error {
	changed := false
	for i := range env.Scope.Tables {
		t := &env.Scope.Tables[i]
		if t.Key == nil {
			continue
		}
		if k := now(*t); k != nil && (k.Index != t.Key.Index || k.Constraint != t.Key.Constraint || k.Primary != t.Key.Primary) {
			t.Key, changed = k, true
		}
	}
	if !changed {
		return nil
	}
	return recordScope(ctx, env)
}
