package dump

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgrunbook/pgrunbook/internal/pg"
)

// hangsOn are the kinds of entries that have no object of their own.
var hangsOn = map[string]bool{"DEFAULT": true, "SEQUENCE OWNED BY": true, "ACL": true, "COMMENT": true, "TABLE ATTACH": true}

// Of picks the archive's entries that make items, with what these need and the target lacks, and with what hangs on
// them: defaults, owned sequences, rights, comments, attached partitions.
func (a *Archive) Of(ctx context.Context, source, target *pgx.Conn, items []Item) ([]Entry, error) {
	want := map[objectID]bool{}
	for _, i := range items {
		want[objectID{i.Class, i.OID}] = true
	}
	byID, picked := map[int]Entry{}, map[int]bool{}
	var todo []Entry
	for _, e := range a.Pre {
		byID[e.DumpID] = e
		if e.Class != 0 && want[objectID{e.Class, e.OID}] {
			picked[e.DumpID] = true
			todo = append(todo, e)
		}
	}
	for asked := map[int]bool{}; len(todo) > 0; todo = todo[1:] {
		for _, id := range todo[0].Deps {
			e, there := byID[id]
			if !there || picked[id] || asked[id] {
				continue
			}
			asked[id] = true
			lacks, err := lacking(ctx, source, target, e)
			if err != nil {
				return nil, err
			}
			if lacks {
				picked[id] = true
				todo = append(todo, e)
			}
		}
	}
	var out []Entry
	for _, e := range a.Pre {
		if !picked[e.DumpID] && hangsOn[e.Kind] {
			for _, d := range e.Deps {
				picked[e.DumpID] = picked[e.DumpID] || picked[d]
			}
			if picked[e.DumpID] && e.Kind == "TABLE ATTACH" {
				attaches, err := attachable(ctx, source, target, e, byID, picked)
				if err != nil {
					return nil, err
				}
				picked[e.DumpID] = attaches
			}
		}
		if picked[e.DumpID] {
			out = append(out, e)
		}
	}
	return out, nil
}

// attachable reports whether an attached partition is made itself. One that is not has another place on the target, or
// none there yet, and is given the source's later; what a partition hangs on may be there before.
func attachable(ctx context.Context, source, target *pgx.Conn, attach Entry, byID map[int]Entry, picked map[int]bool) (bool, error) {
	var oids []uint32
	for _, id := range attach.Deps {
		oids = append(oids, byID[id].OID)
	}
	for _, id := range attach.Deps {
		e, there := byID[id]
		if !there || picked[id] {
			continue
		}
		lacks, err := lacking(ctx, source, target, e)
		if err != nil || lacks {
			return false, err
		}
		var partition bool
		if err := source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = $1 AND inhparent = ANY ($2))", e.OID, oids).Scan(&partition); err != nil {
			return false, identifying(e, err)
		}
		if partition {
			return false, nil
		}
	}
	return true, nil
}

// lacking reports whether the target has no object of an entry's name.
func lacking(ctx context.Context, source, target *pgx.Conn, e Entry) (bool, error) {
	if e.Class == 0 {
		return e.Kind == "SHELL TYPE", nil // what else has no object of its own is needed by nothing
	}
	var kind *string
	var names, args []string
	err := source.QueryRow(ctx, "SELECT type, coalesce(object_names, '{}'), coalesce(object_args, '{}') FROM pg_identify_object_as_address($1, $2, 0)", e.Class, e.OID).Scan(&kind, &names, &args)
	if err != nil || kind == nil {
		return false, identifying(e, err)
	}
	var oid uint32
	err = target.QueryRow(ctx, "SELECT objid FROM pg_get_object_address($1, $2, $3)", *kind, names, args).Scan(&oid)
	switch pg.SQLState(err) {
	case "42P01", "42704", "42883", "42703", "3F000": // undefined: table, object, function, column; schema
		return true, nil
	}
	return false, identifying(e, err)
}

func identifying(e Entry, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("identifying %s: %w", e.Label, err)
}
