package steps

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/engine"
	"github.com/pgrunbook/pgrunbook/internal/pg"
	"github.com/pgrunbook/pgrunbook/runbook"
	"github.com/pgrunbook/pgrunbook/steps/internal/scope"
)

// Inventory is what init writes a runbook from.
type Inventory struct {
	Source     engine.Identity
	Schemas    []SchemaInventory
	Keyless    []TableInventory // tables without a usable key
	Big        []TableInventory // the largest ones, largest first
	Extensions []string
	LargeObjs  bool
}

// SchemaInventory is one schema with tables.
type SchemaInventory struct {
	Name   string
	Tables int
	Bytes  int64
}

// TableInventory is one table.
type TableInventory struct {
	Schema, Name string
	Rows, Bytes  int64
	AtFreeze     bool // small enough to be reloaded inside the freeze by default
}

// bigTables is how many large tables init names, and from which size on.
const (
	bigTables    = 10
	bigTableFrom = 10 << 30
)

// inspectRunbook has everything in scope.
const inspectRunbook = `runbook "init" {}
source { service = "source" }
target { service = "target" }
`

// Inspect looks at a live source, in a session that cannot write. address is how psql is told where
// that is, for who has to look why it cannot be reached.
func Inspect(ctx context.Context, source *pg.Server, address string) (*Inventory, error) {
	conn, err := source.Connect(ctx, pg.Use{Name: "init", ReadOnly: true})
	if err != nil {
		return nil, goneHint("", err, fmt.Sprintf("Mend the address, the network or the server until this works, then run init again: psql %s", address))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	inv := &Inventory{}
	if inv.Source, err = identity(ctx, source, conn); err != nil {
		return nil, err
	}
	rb, diags := runbook.Parse("init.runbook.hcl", []byte(inspectRunbook), runbook.Options{Validate: true})
	if diags.HasErrors() {
		return nil, fmt.Errorf("making a runbook of everything: %w", diags)
	}
	resolved, _, err := scope.Resolve(ctx, scope.Input{Source: conn, Runbook: rb})
	if err != nil {
		return nil, err
	}
	inv.sort(resolved)
	if err := inv.readExtras(ctx, conn); err != nil {
		return nil, err
	}
	return inv, nil
}

// sort fills schemas, keyless and big tables. The scope is in order of name.
func (inv *Inventory) sort(s *scope.Scope) {
	for _, t := range s.Tables {
		if n := len(inv.Schemas); n == 0 || inv.Schemas[n-1].Name != t.Schema {
			inv.Schemas = append(inv.Schemas, SchemaInventory{Name: t.Schema})
		}
		in := &inv.Schemas[len(inv.Schemas)-1]
		in.Tables++
		in.Bytes += t.Bytes
		table := TableInventory{Schema: t.Schema, Name: t.Name.Name, Rows: t.Rows, Bytes: t.Bytes, AtFreeze: t.Data == scope.AtFreeze}
		if t.Key == nil {
			inv.Keyless = append(inv.Keyless, table)
		}
		if t.Bytes >= bigTableFrom && len(inv.Big) < bigTables {
			inv.Big = append(inv.Big, table)
		}
	}
}

// extensionsSQL leaves out what every database has.
const extensionsSQL = `
SELECT e.extname::text FROM pg_catalog.pg_extension e WHERE e.extname OPERATOR(pg_catalog.<>) 'plpgsql' ORDER BY 1`

func (inv *Inventory) readExtras(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, extensionsSQL)
	if err != nil {
		return fmt.Errorf("reading the extensions: %w", err)
	}
	if inv.Extensions, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return fmt.Errorf("reading the extensions: %w", err)
	}
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)").Scan(&inv.LargeObjs); err != nil {
		return fmt.Errorf("looking for large objects: %w", err)
	}
	return nil
}
