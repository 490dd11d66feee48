package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/steps/internal/dump"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// begun is what handled has of a definition that was about to be carried: no definition is like it, so that both sides
// are compared, it is made again where the target lacks it, and is known where the source has it no more.
const begun = "begun"

const madeSQL = `
SELECT n.nspname::text, c.relname::text, CASE c.relkind WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = $1 AND (c.oid = ANY ($2::oid[]) OR n.oid = ANY ($3::oid[]))`

// madeTable is a table that catch_up made on the target.
type madeTable struct {
	name scope.Name
	kind string // TABLE or FOREIGN TABLE, as DROP takes it
}

// ours gives a table that catch_up made on the target, by its oid or by that of its schema: another one of
// its name is a person's. It is nil for any other.
func ours(ctx context.Context, target *pgx.Conn, i dump.Item, made []dump.Made) (*madeTable, error) {
	oids, schemas := []uint32{}, []uint32{}
	for _, m := range made {
		switch {
		case m.Class == i.Class:
			oids = append(oids, m.OID)
		case m.Type == "schema":
			schemas = append(schemas, m.OID)
		}
	}
	if len(oids)+len(schemas) == 0 {
		return nil, nil
	}
	var t madeTable
	err := target.QueryRow(ctx, madeSQL, i.OID, oids, schemas).Scan(&t.name.Schema, &t.name.Name, &t.kind)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking at %s on the target: %w", i.Name, err)
	}
	return &t, nil
}

// dropMade drops on the target what an attempt made that ended before it was part of the run, and the source has
// dropped since. What else differed is compared anew then: with a table goes what depends on it.
func (c *comparison) dropMade(ctx context.Context, env *Env, cp engine.Checkpoint, sides *sideConns) error {
	var names []scope.Name
	var drops []string
	var what string
	for _, d := range c.differences {
		if d.made == nil {
			continue
		}
		cp.Emit(engine.Event{Kind: engine.EventNote, Level: "warn", Object: d.item.ID(), Message: d.text() + ": dropped on the target too"})
		names, what = append(names, d.made.name), d.item.ID()+" was dropped"
		drops = append(drops, "DROP "+d.made.kind+" IF EXISTS "+pg.Name(d.made.name.Schema, d.made.name.Name)+" CASCADE")
	}
	if len(names) == 0 {
		return nil
	}
	if err := looseChildren(ctx, env, cp, sides, names); err != nil {
		return err
	}
	if err := dropCarried(ctx, env, cp, sides, strings.Join(drops, "; "), names); err != nil {
		return err
	}
	return &errRedefined{what}
}
