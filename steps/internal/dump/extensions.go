package dump

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// KeepExtensions leaves out the comments of extensions that the target has: they are its own, and only
// an extension's owner may set one. (They are made with IF NOT EXISTS.)
func (a *Archive) KeepExtensions(ctx context.Context, source, target *pgx.Conn) error {
	rows, err := target.Query(ctx, "SELECT extname::text FROM pg_extension")
	if err != nil {
		return fmt.Errorf("reading the target's extensions: %w", err)
	}
	there, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("reading the target's extensions: %w", err)
	}
	rows, err = source.Query(ctx, "SELECT oid FROM pg_extension WHERE extname = ANY ($1::text[])", there)
	if err != nil {
		return fmt.Errorf("reading the source's extensions: %w", err)
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("reading the source's extensions: %w", err)
	}
	kept := map[int]bool{}
	for _, e := range a.Pre {
		if e.Kind == "EXTENSION" && slices.Contains(oids, e.OID) {
			kept[e.DumpID] = true
		}
	}
	a.Pre = slices.DeleteFunc(a.Pre, func(e Entry) bool {
		return e.Kind == "COMMENT" && slices.ContainsFunc(e.Deps, func(id int) bool { return kept[id] })
	})
	return nil
}
