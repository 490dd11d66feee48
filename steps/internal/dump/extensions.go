package dump

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Present names what a target had before anything was restored into it: schemas and extensions that
// somebody else made there stay as they are.
type Present struct {
	Schemas    []string `json:"schemas,omitempty"`
	Extensions []string `json:"extensions,omitempty"`
}

// ReadPresent reads it.
func ReadPresent(ctx context.Context, target *pgx.Conn) (p Present, err error) {
	if p.Schemas, err = texts(ctx, target, "SELECT nspname::text FROM pg_namespace ORDER BY 1"); err == nil {
		p.Extensions, err = texts(ctx, target, "SELECT extname::text FROM pg_extension ORDER BY 1")
	}
	if err != nil {
		return p, fmt.Errorf("reading the target's schemas and extensions: %w", err)
	}
	return p, nil
}

func texts(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Keep leaves out what would make or take over what the target has: schemas, which pg_restore cannot
// make twice, and comments of extensions, which only their owner may set. (Extensions are made with IF
// NOT EXISTS.) Rights and comments of a schema are carried where the session may set them; where not,
// they are its owner's. Schema public is on every target and is left to who does not own it there.
func (a *Archive) Keep(ctx context.Context, source, target *pgx.Conn, p Present) error {
	extensions, err := oidsOf(ctx, source, "SELECT oid, extname::text FROM pg_extension WHERE extname::text = ANY ($1::text[])", p.Extensions)
	if err != nil {
		return fmt.Errorf("reading the source's extensions: %w", err)
	}
	schemas, err := oidsOf(ctx, source, "SELECT oid, nspname::text FROM pg_namespace WHERE nspname::text = ANY ($1::text[])", p.Schemas)
	if err != nil {
		return fmt.Errorf("reading the source's schemas: %w", err)
	}
	own, err := texts(ctx, target, "SELECT nspname::text FROM pg_namespace WHERE pg_has_role(nspowner, 'USAGE')")
	if err != nil {
		return fmt.Errorf("reading the target's schemas: %w", err)
	}
	comments, all := map[int]bool{}, map[int]bool{} // dump ids of what keeps its comment, or its rights too
	a.Pre = slices.DeleteFunc(a.Pre, func(e Entry) bool {
		if e.Kind == "EXTENSION" && extensions[e.OID] != "" {
			comments[e.DumpID] = true
		}
		name, mine := schemas[e.OID], slices.Contains(own, schemas[e.OID])
		if e.Kind != "SCHEMA" || name == "" || name == "public" && mine {
			return false
		}
		all[e.DumpID] = !mine
		if mine {
			a.Kept = append(a.Kept, e)
		}
		return true
	})
	a.Pre = slices.DeleteFunc(a.Pre, func(e Entry) bool {
		return e.Kind == "COMMENT" && slices.ContainsFunc(e.Deps, func(id int) bool { return comments[id] || all[id] }) ||
			e.Kind == "ACL" && slices.ContainsFunc(e.Deps, func(id int) bool { return all[id] })
	})
	return nil
}

// oidsOf gives names by oid.
func oidsOf(ctx context.Context, conn *pgx.Conn, sql string, names []string) (map[uint32]string, error) {
	rows, err := conn.Query(ctx, sql, names)
	if err != nil {
		return nil, err
	}
	out := map[uint32]string{}
	var oid uint32
	var name string
	_, err = pgx.ForEachRow(rows, []any{&oid, &name}, func() error { out[oid] = name; return nil })
	return out, err
}
